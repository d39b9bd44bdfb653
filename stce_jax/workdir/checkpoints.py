"""Checkpoints, read: found, verified, restored onto any devices. `checkpoint_writer` writes them.

A directory holds one directory a step: the last few, and the best. A step holds `variables` (parameters and BatchNorm
statistics), `optimizer` (its state and the step), `ema` if there is one, meta.json (what the caller wants to know
before it can build a model, and the evaluation's metrics), and the SHA-256 of all these files.
"""

import json
import logging
import sys

import jax
import orbax.checkpoint as ocp

from stce_jax.errors import CheckpointError
from stce_jax.paths import first_line, is_remote, open_path
from stce_jax.training.mesh import state_shardings
from stce_jax.training.state import first_mismatch
from stce_jax.workdir import digests

META_FILE = "meta.json"
GONE = "it is gone"
DAMAGED = ".damaged"  # follows the step in the name of a directory that was set aside


class Checkpoints:
    """The checkpoints in one directory, local or remote."""

    def __init__(self, directory):
        self._directory = open_path(directory)
        logging.getLogger("absl").addFilter(_not_orbaxs)

    def steps(self):
        """All steps kept, ascending."""
        if not self._directory.exists():
            return []
        paths = [path for path in self._directory.iterdir() if path.name.isdecimal()]
        if is_remote(self._directory):
            paths = [path for path in paths if (path / digests.FILE_NAME).exists()]
        return sorted(int(path.name) for path in paths)

    def find(self, which):
        """The step meant by "last" (the newest that is whole), "best" or a number, its files verified.

        Raises:
          CheckpointError: there is none, or its files are not what was written.
        """
        if which == "last":
            step = self.newest_whole()
            if step is None:
                raise CheckpointError(f"there is no checkpoint in {self._directory}; train first")
            return step
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"there is no checkpoint in {self._directory}; train first")
        if which == "best":
            step = self.best(steps)
            if step is None:
                raise CheckpointError(f"no checkpoint in {self._directory} has been evaluated yet; use last")
        elif str(which).isdecimal() and int(which) in steps:
            step = int(which)
        else:
            raise CheckpointError(
                f"there is no checkpoint {which!r} in {self._directory}; there are last, best, {steps}"
            )
        if damage := self._damage(step):
            raise CheckpointError(f"checkpoint {step} in {self._directory} is damaged: {damage}; use another one")
        return step

    def newest_whole(self):
        """The newest step whose files are what was written; damaged ones are reported. None: there never was any.

        Raises:
          CheckpointError: there are checkpoints, but none is whole.
        """
        damages = {}
        for step in reversed(self.steps()):
            damage = self._damage(step)
            if damage == GONE:  # a run that is being trained has deleted it: there is a newer one
                return self.newest_whole()
            if not damage:
                for damaged, cause in damages.items():
                    self._report(damaged, cause, f"using checkpoint {step}")
                return step
            damages[step] = damage
        self._refuse(damages)
        return None

    def _refuse(self, damages):
        """Raises CheckpointError if there was a checkpoint ever: nobody should begin anew without knowing."""
        if damages:
            causes = "; ".join(f"{step}: {damage}" for step, damage in damages.items())
        elif self._directory.exists() and any(DAMAGED in path.name for path in self._directory.iterdir()):
            causes = "all were set aside as damaged"
        else:
            return
        raise CheckpointError(
            f"no checkpoint in {self._directory} is whole ({causes}); put a copy back, or train anew in another "
            "--workdir"
        )

    def _damage(self, step):
        """See `find_damage`; raises CheckpointError if that cannot be told now."""
        try:
            damage = digests.find_damage(self._path(step))
        except Exception as error:  # of a remote storage anything
            if not self._path(step).exists():
                return GONE
            raise self._cannot_read(step, error) from error
        return GONE if damage and not self._path(step).exists() else damage

    def _report(self, step, damage, instead):
        text = f"stce: checkpoint {step} in {self._directory} is damaged: {damage}; {instead}"
        print(text, file=sys.stderr, flush=True)

    def best(self, steps):
        """Of these steps the one with the best top-1, of equals the last; None if none has been evaluated."""
        evaluated = {step: metrics["top1"] for step in steps if (metrics := self._metrics(step))}
        return max(evaluated, key=lambda step: (evaluated[step], step), default=None)

    def _metrics(self, step):
        """The metrics of a step's evaluation; None if there was none, or if it is damaged."""
        try:
            return self.restore_meta(step)["metrics"]
        except CheckpointError:
            return None

    def restore(self, step, state, mesh):
        """Reads a whole TrainState, each array onto its devices.

        Args:
          step: a step that is whole, see `newest_whole`.
          state: a TrainState of arrays or ShapeDtypeStructs with the wanted shapes.
          mesh: see `make_mesh`.

        Raises:
          CheckpointError: it cannot be read, or is of another model: the first parameter that differs is named.
        """
        target = _with_shardings(state, mesh)
        items = {"variables": target.variables, "optimizer": {"step": target.step, "state": target.optimizer}}
        if target.ema is not None:
            items["ema"] = target.ema
        restored = self._restore_arrays(step, items)
        optimizer = restored["optimizer"]
        return state.replace(
            step=optimizer["step"],
            variables=restored["variables"],
            optimizer=optimizer["state"],
            ema=restored["ema"] if target.ema is not None else None,
        )

    def restore_variables(self, step, variables, mesh, *, ema=False):
        """Reads the variables alone, or their moving average."""
        name = "ema" if ema else "variables"
        if ema and not (self._path(step) / name).exists():
            raise self._no_average(step)
        return self._restore_arrays(step, {name: _with_shardings(variables, mesh)})[name]

    def restore_meta(self, step):
        """Reads the JSON saved with a step, and "metrics": those of its evaluation, or None."""
        try:
            return json.loads((self._path(step) / META_FILE).read_text())
        except (OSError, ValueError) as error:
            raise self._cannot_read(step, error) from error

    def _restore_arrays(self, step, items):
        handlers = {name: ocp.StandardCheckpointHandler() for name in items}
        reader = ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers))
        try:
            if "ema" in items and not (self._path(step) / "ema").exists():
                raise self._no_average(step)
            found = reader.metadata(self._path(step)).item_metadata
            for name, item in items.items():
                mismatch = name != "optimizer" and first_mismatch(item, found[name].tree)
                if mismatch:
                    raise CheckpointError(f"checkpoint {step} in {self._directory} is of another model: {mismatch}")
            wanted = {name: ocp.args.StandardRestore(item) for name, item in items.items()}
            return reader.restore(self._path(step), args=ocp.args.Composite(**wanted))
        except CheckpointError:
            raise
        except Exception as error:  # tensorstore and Orbax each have their own
            if "tree structures do not match" in str(error):
                raise CheckpointError(
                    f"checkpoint {step} in {self._directory} holds the state of an optimizer with other parts; give "
                    "the options it was trained with (clip_norm), or begin with its weights: --init_from"
                ) from error
            raise self._cannot_read(step, error) from error

    def _path(self, step):
        return self._directory / str(step)

    def _no_average(self, step):
        return CheckpointError(f"checkpoint {step} in {self._directory} keeps no moving average (ema_decay was 0)")

    def _cannot_read(self, step, error):
        return CheckpointError(f"cannot read checkpoint {step} in {self._directory}: {first_line(error)}")


def _with_shardings(tree, mesh):
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        state_shardings(tree, mesh),
    )


def _not_orbaxs(record):
    """False for what Orbax logs: hundreds of lines about errors that it raises as well."""
    return "/orbax/" not in record.pathname.replace("\\", "/")
