"""One job a workdir: a lock where there are locks, a sign of life where there are none."""

import contextlib
import errno
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path, PurePath
from typing import Any, Self

from stce_jax.data import locks
from stce_jax.errors import ConfigError
from stce_jax.paths import (
    first_line,
    is_remote,
    open_path,
    parse_json,
    read_bytes,
    remedy,
    remove_partials,
    write_text,
)
from stce_jax.platform import terminal

FILE_NAME = "lock"
BEAT = 15.0  # seconds between two signs of life of a job on a remote workdir
PATIENCE = 45.0  # seconds without one after which a job counts as dead
SETTLE = 2.0  # seconds after which, of jobs started at the same moment, the last one has written
LOOK = 1.0  # seconds between two looks whether a local workdir is still there
_START = b'{"host": '  # of a lock of ours
_LARGEST_LOCK = 2**16  # bytes


class InUseError(ConfigError):
    """A living job has the workdir."""


class LostClaimError(ConfigError):
    """The workdir is another job's by now, or gone; nothing more may be written to it."""


class Claim:
    """`with Claim(workdir):` reserves a workdir for this process, if no living job has it.

    A local workdir is locked (its file `lock`, see `locks.take`); the kernel unlocks it however the process ends. A
    remote one has no locks: there, the owner rewrites the object `lock` every `BEAT` seconds, and a new job that finds
    one watches it for `PATIENCE` seconds. An owner that was killed on the same machine is noticed at once.

    Attributes:
      lost: another job has taken the remote workdir, because no sign of life came through.

    Raises:
      InUseError: a living job has it.
      ConfigError: it cannot be written, or its name cannot be used.
    """

    def __init__(self, workdir: str | PurePath) -> None:
        self._remote = is_remote(workdir)
        _check_name(str(workdir))
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
        self._next_look, self._descriptor = 0.0, -1
        self.lost = False

    def __enter__(self) -> Self:
        try:
            if self._remote:
                self._take()
            else:
                self._lock()
                for directory in (self._workdir, self._workdir / "plots"):
                    remove_partials(directory)
        except ConfigError:
            raise
        except Exception as error:  # of a remote storage anything
            advice = remedy(error, "give another --workdir")
            raise ConfigError(f"cannot write to workdir {self._workdir}: {first_line(error)}; {advice}") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if self._remote:
            self._release()
            return
        try:
            if kind is None:
                self._look()
        finally:
            self._unlock()

    def check(self) -> None:
        """Raises LostClaimError if the claim or the workdir is lost; to be called before every step."""
        if self.lost:
            raise LostClaimError(f"another job has taken workdir {self._workdir}; give another --workdir")
        if not self._remote and time.monotonic() >= self._next_look:
            self._look()

    def _lock(self) -> None:
        self._workdir.mkdir(parents=True, exist_ok=True)
        self._directory = os.stat(self._workdir)
        try:
            self._descriptor = locks.take(self._path)
        except BlockingIOError:
            raise self._refusal(self._read()) from None
        try:
            found = os.pread(self._descriptor, len(_START), 0)
            if not _START.startswith(found):  # half of ours, or nothing, may be left by a process that was killed
                raise ConfigError(f"{self._path} is no lock of a run; move it away, or give another --workdir")
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, json.dumps(self._owner).encode())
        except BaseException:
            self._unlock(empty=False)
            raise

    def _unlock(self, *, empty: bool = True) -> None:
        if empty:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
        locks.release(self._descriptor)
        self._descriptor = -1

    def _look(self) -> None:
        """Raises LostClaimError if a local workdir was deleted or moved; a lock that was is made again."""
        self._next_look = time.monotonic() + LOOK
        try:
            there = os.stat(self._workdir)
            if os.path.samestat(there, self._directory):
                if self._descriptor < 0 or not locks.holds(self._descriptor, self._path):
                    self._unlock()
                    self._lock()
                return
        except FileNotFoundError:
            pass
        except InUseError as error:
            raise LostClaimError(f"the lock was deleted, and {error}") from error
        except OSError as error:
            if error.errno != errno.ESTALE:
                return  # it may be there again at the next look; whoever writes finds out
        raise LostClaimError(
            f"workdir {self._workdir} was deleted or moved while the run wrote to it: nothing more is saved. Put it "
            "back and run again to resume, or begin again in another --workdir"
        )

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
            return _parse(read_bytes(self._path).decode(errors="replace"))
        except FileNotFoundError:
            return {}

    def _refusal(self, owner: dict[str, Any]) -> InUseError:
        return InUseError(
            f"workdir {self._workdir} is in use by {_describe(owner)}; wait for it, stop it, or give another --workdir"
        )


def owner_of(workdir: str | os.PathLike[str]) -> str:
    """Which living job has a local workdir, in words; "" if none has, or that cannot be found out.

    An owner leaves its name in the lock, and takes it away when it ends. Only where one was killed before it could, the
    lock itself is tried, for a moment.
    """
    path = os.path.join(workdir, FILE_NAME)
    text = ""
    try:
        if text := read_bytes(path, _LARGEST_LOCK).decode(errors="replace"):
            locks.release(locks.take(path))
    except BlockingIOError:
        return _describe(_parse(text))
    except OSError:  # it is not there, or may not be written to
        pass
    return ""


def _check_name(workdir: str) -> None:
    """Refuses a workdir whose name some library would not take for that directory, before anything is written."""
    if not is_remote(workdir):
        if any("\udc80" <= character <= "\udcff" for character in workdir):  # how Python spells other bytes
            raise ConfigError(f"--workdir={workdir!a} is no UTF-8; give a directory whose name is")
        return
    if not workdir.startswith("gs://"):
        raise ConfigError(f"--workdir={workdir}: Orbax writes checkpoints to local paths and gs:// only")
    if odd := set(workdir) & set("[]*?\\"):
        raise ConfigError(f"--workdir={workdir}: {min(odd)!r} in a remote path means a pattern; give another name")


def _parse(text: str) -> dict[str, Any]:
    try:
        return dict(parse_json(text))
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
