"""Checkpoints, written: by Orbax in the background, then sealed with digests; the last few and the best are kept.

A step's directory takes its name only when it is complete, digests and all. On object stores, which cannot rename, the
digests are written last instead. A run's first checkpoint is read back before it is sealed, and so is any other that
has not the same parts as the last one that was read: what cannot be read never counts.
"""

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import PurePath
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from stce_jax.errors import CheckpointError
from stce_jax.paths import first_line, is_remote, plain_path, write_text
from stce_jax.platform import event_loops
from stce_jax.processes import peers as processes
from stce_jax.workdir import digests
from stce_jax.workdir.checkpoints import DAMAGED, META_FILE, Checkpoints, items_of

UNSEALED, DELETING = ".unsealed", ".deleting"  # follow the step in the name of a directory


class CheckpointWriter(Checkpoints):
    """Makes the directory if it is not there; a context manager that waits for what is being written when it closes.

    Of several processes, all make the same calls; the first one writes and deletes what is not an array.

    Args:
      directory: where the steps are, local or remote.
      keep: how many of the last steps are kept, beside the best; 1 or more.

    Attributes:
      scheduled: whether a step is saved in every run, or only because this one was stopped there; all are, until it is
        set. The last one that is saved in every run is kept, too.
    """

    def __init__(self, directory: str | PurePath, *, keep: int) -> None:
        super().__init__(directory)
        self.scheduled: Callable[[int], bool] = lambda step: True
        self._keep, self._main = keep, jax.process_index() == 0
        self._sealing: threading.Thread | None = None
        self._error: Exception | None = None
        self._read_parts: set[str] = set()  # of the last checkpoint that was read
        event_loops.finish_before_closing()
        self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        if self._main:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
                self._remove_leftovers()
            except OSError as error:
                raise self._cannot_write(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is None:
            self.wait()
            self._writer.close()
        elif self._sealing:
            self._sealing.join()

    def recover(self, *, scheduled: bool = False) -> int | None:
        """The newest step whose files are what was written, or None if there is none yet.

        All steps are verified, and those that are damaged renamed to STEP.damaged.

        Args:
          scheduled: of the steps that are saved in every run; newer ones are deleted.

        Raises:
          CheckpointError: there are checkpoints, but none is whole.
        """
        self.wait()
        return processes.share(self._recover(scheduled) if self._main else None)

    def _recover(self, scheduled: bool) -> int | None:
        damages = {step: self._damage(step) for step in self.steps()}
        whole = [step for step, damage in damages.items() if not damage]
        if not whole:
            self._refuse_if_any(damages)
            return None
        try:
            for step, damage in damages.items():
                if damage:
                    renamed = self._set_aside(step)
                    self._report(step, damage, f"it is called {renamed} now; resuming from {whole[-1]}")
            while scheduled and whole and not self.scheduled(whole[-1]):
                self._delete(whole.pop())
        except OSError as error:
            raise self._cannot_write(error) from error
        return whole[-1] if whole else None

    def _set_aside(self, step: int) -> str:
        path, number = self._directory / f"{step}{DAMAGED}", 1
        while path.exists():
            number += 1
            path = self._directory / f"{step}{DAMAGED}.{number}"
        self._path(step).rename(path)
        return path.name

    def save(self, state: Any, meta: dict[str, Any], metrics: dict[str, float] | None = None) -> None:
        """Starts writing a TrainState under its step; returns once the arrays are copied off the devices.

        A step that is there already is replaced once the new one is complete; in a remote directory, where it would be
        lost meanwhile, it stays as it is.

        Args:
          state: TrainState.
          meta: JSON-able dict.
          metrics: of this step's evaluation, if there was one: their score, see `score`, decides which is "best".

        Raises:
          CheckpointError: it cannot be written, or an earlier write failed.
        """
        self.wait()
        step = int(jax.device_get(state.step))
        if is_remote(self._directory) and self._path(step).exists():
            return
        items = items_of(state)
        with contextlib.ExitStack() as stack:
            try:
                if self._main and not is_remote(self._directory) and not self._directory.exists():
                    raise FileNotFoundError(0, "it was deleted or moved")  # Orbax would make it again
                directory = stack.enter_context(plain_path(self._directory))
                saved = {name: ocp.args.StandardSave(item) for name, item in items.items()}
                with jax.transfer_guard("allow"):  # Orbax has its own way to copy arrays off the devices
                    path = directory / self._unsealed(step).name
                    self._writer.save(path, args=ocp.args.Composite(**saved), force=True)
            except Exception as error:  # tensorstore and Orbax each have their own for a full disk
                raise self._cannot_write(error) from error
            shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), items)
            arguments = (step, {**meta, "metrics": metrics}, shapes, path, stack.pop_all())
        self._sealing = threading.Thread(target=self._seal, args=arguments, name="stce checkpoint", daemon=True)
        self._sealing.start()

    def _seal(
        self, step: int, meta: dict[str, Any], shapes: dict[str, Any], path: epath.Path, writing: contextlib.ExitStack
    ) -> None:
        """Waits for Orbax, and gives a checkpoint that can be read its name.

        Args:
          step, meta: see `save`.
          shapes: of the arrays, by item.
          path: what Orbax calls the directory until `writing` is closed.
        """
        try:
            with writing:
                self._writer.wait_until_finished()
                if self._main and self._parts(step, shapes) != self._read_parts:
                    self._read_back(path, shapes)
                    self._read_parts = self._parts(step, shapes)
            if self._main:  # while steps are computed: nothing here may use the devices
                unsealed = self._unsealed(step)
                write_text(unsealed / META_FILE, json.dumps(meta))
                digests.write_digests(unsealed)
                if unsealed != self._path(step):
                    self._replace(unsealed, self._path(step))
                self._delete_old()
        except Exception as error:
            self._error = error

    def _parts(self, step: int, items: dict[str, Any]) -> set[str]:
        """What each item of a step that is not sealed yet consists of: "variables/_METADATA", "variables/d", ..."""
        folders = (self._unsealed(step) / name for name in items)
        return {f"{folder.name}/{path.name}" for folder in folders for path in folder.iterdir()}

    def _read_back(self, path: epath.Path, shapes: dict[str, Any]) -> None:
        """Reads all arrays of a step into the host's memory, item by item; raises whatever Orbax does if it cannot."""
        for name, item in shapes.items():
            target = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), item)
            ocp.StandardCheckpointHandler().restore(path / name, args=ocp.args.StandardRestore(target))

    def _replace(self, unsealed: epath.Path, path: epath.Path) -> None:
        """Renames a directory that is whole; at every moment one whole directory is there."""
        old = self._directory / f"{path.name}{DELETING}"
        if path.is_dir() and not os.path.islink(path):
            path.rename(old)
        elif os.path.lexists(path):  # somebody else's file or link
            self._set_aside(int(path.name))
        unsealed.rename(path)
        if old.exists():
            shutil.rmtree(old)

    def _delete_old(self) -> None:
        steps = self.steps()
        kept = {*steps[-self._keep :], self.best(steps), max(filter(self.scheduled, steps), default=None)}
        for step in steps:
            if step not in kept:
                self._delete(step)

    def _delete(self, step: int) -> None:
        """Deletes a step, if it is there, so that a part of it never looks like a whole."""
        path = self._path(step)
        if not path.exists():
            return
        if is_remote(path):
            (path / digests.FILE_NAME).unlink()
            path.rmtree()
        elif os.path.islink(path):  # what it leads to is not in this workdir
            path.unlink()
        else:
            path.rename(self._directory / f"{step}{DELETING}")
            shutil.rmtree(self._directory / f"{step}{DELETING}")

    def _remove_leftovers(self) -> None:
        """Removes what a killed process left unfinished; what is whole but has no final name yet gets it."""
        for path in self._entries():
            for ending in (UNSEALED, DELETING):
                final = self._directory / path.name.removesuffix(ending)
                whole = path.name.endswith(ending) and final.name.isdecimal() and not final.exists()
                if whole and not digests.find_damage(path):
                    path.rename(final)
        for path in self._entries():
            begun = is_remote(path) and path.name.isdecimal() and not (path / digests.FILE_NAME).exists()
            if begun or UNSEALED in path.name or DELETING in path.name:
                path.rmtree()

    def check(self) -> None:
        """Raises CheckpointError if a write in the background has failed; costs nothing."""
        if self._sealing and not self._sealing.is_alive():
            self._sealing = None
            if self._error:
                raise self._cannot_write(self._error) from self._error

    def wait(self) -> None:
        """Returns when everything is on disk; raises CheckpointError if a write failed."""
        if self._sealing:
            self._sealing.join()
            self.check()

    def _unsealed(self, step: int) -> epath.Path:
        return self._path(step) if is_remote(self._directory) else self._directory / f"{step}{UNSEALED}"

    def _cannot_write(self, error: Exception) -> CheckpointError:
        kept: list[int] = []
        with contextlib.suppress(CheckpointError, OSError):
            kept = self.steps()
        advice = "the last one stays. Make room" if kept else "make room"
        return CheckpointError(
            f"cannot write a checkpoint in {self._directory}: {first_line(error)}; {advice}, or make it writable, and "
            "run again"
        )
