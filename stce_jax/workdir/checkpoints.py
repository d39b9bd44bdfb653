"""Checkpoints, read: found, verified, restored onto any devices. `checkpoint_writer` writes them.

A directory holds one directory per step: the last few, and the best. A step holds `variables` (parameters and BatchNorm
statistics), `optimizer` (its state and the step), `ema` if there is one, meta.json (what the caller needs before it can
build a model, and the evaluation's metrics), and the SHA-256 of all these files.
"""

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from stce_jax.errors import CheckpointError
from stce_jax.paths import first_line, is_remote, open_path, plain_path, read_json
from stce_jax.platform import logs, terminal
from stce_jax.workdir import digests
from stce_jax.workdir.meta import find_problem
from stce_jax.workdir.mismatch import first_mismatch
from stce_jax.workdir.optimizer_states import carry_over
from stce_jax.workdir.score import score

META_FILE = "meta.json"
GONE = "it is gone"
_NUMBER = re.compile("0|[1-9][0-9]{0,17}")
DAMAGED = ".damaged"  # follows the step in the name of a directory that was set aside


def items_of(state: Any) -> dict[str, Any]:
    """The parts of a TrainState that are saved as items of their own."""
    items = {"variables": state.variables, "optimizer": {"step": state.step, "state": state.optimizer}}
    return items if state.ema is None else {**items, "ema": state.ema}


class Checkpoints:
    """The checkpoints in one directory, local or remote."""

    def __init__(self, directory: str | PurePath) -> None:
        self._directory: epath.Path = open_path(directory)
        logs.drop_orbax()

    def steps(self) -> list[int]:
        """All steps kept, ascending: directories called by their number; what else lies there is passed over.

        Raises:
          CheckpointError: the directory cannot be listed.
        """
        paths = [path for path in self._entries() if _NUMBER.fullmatch(path.name)]
        if is_remote(self._directory):
            paths = [path for path in paths if (path / digests.FILE_NAME).exists()]
        else:
            paths = [path for path in paths if path.is_dir()]
        return sorted(int(path.name) for path in paths)

    def _entries(self) -> list[epath.Path]:
        """All that lies in the directory, nothing if there is none."""
        try:
            return list(self._directory.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(
                f"cannot list the checkpoints in {self._directory}: {first_line(error)}; make it a directory that can "
                "be read"
            ) from error

    def find(self, which: str | int) -> int:
        """The step meant by "last" (the newest that is whole), "best" or a number, its files verified.

        Raises:
          CheckpointError: there is none, or its files are not what was written.
        """
        if which == "last":
            newest = self.newest_whole()
            if newest is None:
                raise CheckpointError(f"there is no checkpoint in {self._directory}; train first")
            return newest
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"there is no checkpoint in {self._directory}; train first")
        if which == "best":
            best = self.best(steps)
            if best is None:
                raise CheckpointError(f"no checkpoint in {self._directory} has been evaluated yet; use last")
            step = best
        elif _NUMBER.fullmatch(str(which)) and int(which) in steps:
            step = int(which)
        else:
            raise CheckpointError(
                f"there is no checkpoint {which!r} in {self._directory}; there are last, best, {steps}"
            )
        if damage := self._damage(step):
            raise CheckpointError(f"checkpoint {step} in {self._directory} is damaged: {damage}; use another one")
        return step

    def newest_whole(self) -> int | None:
        """The newest step whose files are what was written; damaged ones are reported. None: there never was any.

        Raises:
          CheckpointError: there are checkpoints, but none is whole.
        """
        damages: dict[int, str | None] = {}
        for step in reversed(self.steps()):
            damage = self._damage(step)
            if damage == GONE:  # a run that is being trained has deleted it: there is a newer one
                return self.newest_whole()
            if not damage:
                for damaged, cause in damages.items():
                    self._report(damaged, cause, f"using checkpoint {step}")
                return step
            damages[step] = damage
        self._refuse_if_any(damages)
        return None

    def _refuse_if_any(self, damages: dict[int, str | None]) -> None:
        """Raises CheckpointError if there ever was a checkpoint: a run must not start over without notice."""
        if damages:
            causes = "; ".join(f"{step}: {damage}" for step, damage in damages.items())
        elif any(DAMAGED in path.name for path in self._entries()):
            causes = "all were set aside as damaged"
        else:
            return
        raise CheckpointError(
            f"no checkpoint in {self._directory} is whole ({causes}); put a copy back, or train again in another "
            "--workdir"
        )

    def _damage(self, step: int) -> str | None:
        """See `find_damage`; raises CheckpointError if that cannot be found out now."""
        try:
            damage = digests.find_damage(self._path(step))
        except Exception as error:  # of a remote storage anything
            if not self._path(step).exists():
                return GONE
            raise self._cannot_read(step, error) from error
        return GONE if damage and not self._path(step).exists() else damage

    def _report(self, step: int, damage: str | None, instead: str) -> None:
        terminal.warn(f"checkpoint {step} in {self._directory} is damaged: {damage}; {instead}")

    def best(self, steps: Sequence[int]) -> int | None:
        """Of these steps the one with the best score, the later one on a tie; None if none has been evaluated."""
        evaluated = {step: score(metrics) or 0.0 for step in steps if (metrics := self._metrics(step))}
        return max(evaluated, key=lambda step: (evaluated[step], step), default=None)

    def _metrics(self, step: int) -> dict[str, float] | None:
        """The metrics of a step's evaluation; None if there was none, or if it is damaged."""
        try:
            return self.restore_meta(step)["metrics"]
        except CheckpointError:
            return None

    def restore(self, step: int, state: Any, *, changed: str = "") -> Any:
        """Reads a whole TrainState, each array onto its devices.

        Args:
          step: a step that is whole, see `newest_whole`.
          state: a TrainState of ShapeDtypeStructs (or arrays): the shapes, dtypes and shardings to restore. Its
            optimizer may have other parts than the one that was saved, if those have no state.
          changed: options of the config that are not those it was trained with; a refusal names them.

        Raises:
          CheckpointError: it cannot be read, or is of another model or optimizer: the first array that differs is
            named.
        """
        if state.ema is not None and not (self._path(step) / "ema").exists():
            without = "--config.optimizer.ema_decay=0 --config.optimizer.ema_share=0"
            raise self._no_average(step, f"give {without}, or {self._begin_anew()}")
        restored = self._restore_arrays(step, items_of(state), changed=changed)
        return state.replace(
            step=restored["optimizer"]["step"],
            variables=restored["variables"],
            optimizer=restored["optimizer"]["state"],
            ema=restored["ema"] if state.ema is not None else None,
        )

    def restore_variables(self, step: int, variables: Any, *, ema: bool = False) -> Any:
        """Reads only the variables, or their moving average; for `variables` see `restore`."""
        name = "ema" if ema else "variables"
        if ema and not (self._path(step) / name).exists():
            raise self._no_average(step, "take its weights, without --ema")
        return self._restore_arrays(step, {name: variables})[name]

    def restore_meta(self, step: int, *keys: str) -> dict[str, Any]:
        """Reads the JSON saved with a step, and "metrics": those of its evaluation, or None.

        Args:
          step: a step that is whole.
          keys: what the caller uses of it, beside "metrics"; see `meta.find_problem`.

        Raises:
          CheckpointError: it cannot be read, or is not what a run writes.
        """
        try:
            found = read_json(self._path(step) / META_FILE)
            if problem := find_problem(found, keys):
                raise ValueError(f"{META_FILE} is damaged: {problem}")
            return found
        except (OSError, ValueError) as error:
            raise self._cannot_read(step, error) from error

    def _restore_arrays(self, step: int, items: dict[str, Any], *, changed: str = "") -> Any:
        handlers = {name: ocp.StandardCheckpointHandler() for name in items}
        reader = ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers))
        try:
            with plain_path(self._directory) as directory:
                path = directory / str(step)
                found = reader.metadata(path).item_metadata
                for name, item in items.items():
                    mismatch = name != "optimizer" and first_mismatch(item, found[name].tree)
                    if mismatch:
                        raise self._other_model(step, mismatch, changed)
                if "optimizer" in items:
                    try:
                        items["optimizer"], arrange = carry_over(items["optimizer"], found["optimizer"].tree)
                    except ValueError as error:
                        raise self._other_optimizer(step, str(error), changed) from error
                targets = {name: ocp.args.StandardRestore(item) for name, item in items.items()}
                restored = dict(reader.restore(path, args=ocp.args.Composite(**targets)))
        except CheckpointError:
            raise
        except Exception as error:  # tensorstore and Orbax each have their own
            raise self._cannot_read(step, error) from error
        return restored | {"optimizer": arrange(restored["optimizer"])} if "optimizer" in restored else restored

    def _path(self, step: int) -> epath.Path:
        return self._directory / str(step)

    def _no_average(self, step: int, advice: str) -> CheckpointError:
        place = f"checkpoint {step} in {self._directory}"
        return CheckpointError(f"{place} keeps no moving average (ema_decay was 0); {advice}")

    def _other_model(self, step: int, mismatch: str, changed: str) -> CheckpointError:
        advice = f"; give the options it was trained with ({changed}), or another --workdir" if changed else ""
        return CheckpointError(f"checkpoint {step} in {self._directory} is of another model: {mismatch}{advice}")

    def _other_optimizer(self, step: int, mismatch: str, changed: str) -> CheckpointError:
        return CheckpointError(
            f"checkpoint {step} in {self._directory} holds the state of another optimizer: {mismatch}; give the "
            f"--config.optimizer options it was trained with{changed and f' ({changed})'}, or {self._begin_anew()}"
        )

    def _begin_anew(self) -> str:
        return f"begin a new run with its weights: another --workdir, --init_from={self._directory.parent}"

    def _cannot_read(self, step: int, error: Exception) -> CheckpointError:
        return CheckpointError(f"cannot read checkpoint {step} in {self._directory}: {first_line(error)}")
