"""One job a workdir: a lock where there are locks, a sign of life where there are none."""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path, PurePath
from typing import Any, Self

from stce_jax.errors import ConfigError
from stce_jax.paths import first_line, is_remote, open_path, write_text
from stce_jax.platform import terminal

FILE_NAME = "lock"
BEAT = 15.0  # seconds between two signs of life of a job on a remote workdir
PATIENCE = 45.0  # seconds without one after which a job counts as dead
SETTLE = 2.0  # seconds after which, of jobs started at the same moment, the last one has written
_locks: set[int] = set()  # file descriptors of the local claims


def _forget_locks() -> None:
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


os.register_at_fork(after_in_child=_forget_locks)  # a child that outlives its parent would keep its lock


class InUseError(ConfigError):
    """A living job has the workdir."""


class LostClaimError(ConfigError):
    """Another job has taken the workdir; nothing more may be written to it."""


class Claim:
    """`with Claim(workdir):` reserves a workdir for this process, if no living job has it.

    A local workdir is locked (flock on its file `lock`); the kernel unlocks it however the process ends. Remote storage
    has no locks: there, the owner rewrites the object `lock` every `BEAT` seconds, and a new job that finds one watches
    it for `PATIENCE` seconds. An owner that was killed on the same machine is noticed at once.

    Attributes:
      lost: another job has taken the remote workdir, because no sign of life came through.

    Raises:
      InUseError: a living job has it.
      ConfigError: it cannot be written.
    """

    def __init__(self, workdir: str | PurePath) -> None:
        self._remote = is_remote(workdir)
        if self._remote and not str(workdir).startswith("gs://"):
            raise ConfigError(f"--workdir={workdir}: Orbax writes checkpoints to local paths and gs:// only")
        self._workdir = open_path(workdir)
        self._path = self._workdir / FILE_NAME
        self._owner: dict[str, Any] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            "processes": _process_namespace(),
            "token": uuid.uuid4().hex,
        }
        self._ended = threading.Event()
        self.lost = False

    def __enter__(self) -> Self:
        try:
            if self._remote:
                self._take()
            else:
                self._lock()
        except ConfigError:
            raise
        except Exception as error:  # of a remote storage anything
            raise ConfigError(
                f"cannot write to workdir {self._workdir}: {first_line(error)}; give another --workdir"
            ) from error
        return self

    def __exit__(self, *exception: object) -> None:
        if self._remote:
            self._release()
        else:
            os.ftruncate(self._descriptor, 0)
            _locks.discard(self._descriptor)
            os.close(self._descriptor)

    def check(self) -> None:
        """Raises LostClaimError if the claim is lost; to be called before every step."""
        if self.lost:
            raise LostClaimError(f"another job has taken workdir {self._workdir}; give another --workdir")

    def _lock(self) -> None:
        self._workdir.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as undo:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o666)  # not emptied before it is ours
            undo.callback(os.close, self._descriptor)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._refusal(self._read()) from None
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, json.dumps(self._owner).encode())
            undo.pop_all()
        _locks.add(self._descriptor)

    def _take(self) -> None:
        found = self._read()
        if found and not _is_dead(found):
            waiting = f"watching for {PATIENCE:.0f} s whether that job lives"
            terminal.say(f"{self._workdir} is claimed by {_describe(found)}; {waiting}")
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline and (now := self._read()):
                if now != found:
                    raise self._refusal(now)
                time.sleep(min(1.0, PATIENCE / 20))
        self._beat()
        time.sleep(SETTLE)
        standing = self._read()
        if standing.get("token") != self._owner["token"]:
            raise self._refusal(standing)
        self._thread = threading.Thread(target=self._keep_beating, name="claim of the workdir", daemon=True)
        self._thread.start()

    def _keep_beating(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                if self._read().get("token") != self._owner["token"]:
                    self.lost = True
                    return
                self._beat()
            except Exception as error:  # the network may be back before the patience of others ends
                terminal.say(f"cannot write {self._path}: {first_line(error)}; trying again")

    def _release(self) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # it is left behind, and costs the next job its patience
            if self._read().get("token") == self._owner["token"]:
                self._path.unlink()

    def _beat(self) -> None:
        write_text(self._path, json.dumps(self._owner | {"beat": time.time()}))

    def _read(self) -> dict[str, Any]:
        """The lock object, {} if there is none."""
        try:
            return _parse(self._path.read_text())
        except FileNotFoundError:
            return {}

    def _refusal(self, owner: dict[str, Any]) -> InUseError:
        return InUseError(
            f"workdir {self._workdir} is in use by {_describe(owner)}; wait for it, stop it, or give another --workdir"
        )


def _parse(text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError):  # between being locked and being written
        return {"damaged": text}


def _describe(owner: dict[str, Any]) -> str:
    if not {"host", "pid", "started"} <= owner.keys():
        return "another job"
    return f"process {owner['pid']} on {owner['host']}, running since {owner['started']}"


def _process_namespace() -> str:
    """Names the namespace in which a process id is unique: two containers may have the same host name."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"


def _is_dead(owner: dict[str, Any]) -> bool:
    return owner.get("processes") == _process_namespace() and not Path(f"/proc/{owner['pid']}").exists()
