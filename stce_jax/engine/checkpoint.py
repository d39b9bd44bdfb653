"""Checkpoints by Orbax: the last two steps and the best, written in the background, restored onto any devices.

A step holds `variables` (parameters and BatchNorm statistics), `optimizer` (its state and the step), `ema` if there is
one, and `meta` (JSON: what the caller wants to know before it can build a model).
"""

import asyncio
import contextlib
import logging
import textwrap
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from stce_jax.engine.mesh import state_shardings
from stce_jax.errors import CheckpointError


class Checkpoints:
    """The checkpoints in one directory; a context manager that waits for writes in progress when it closes.

    Args:
      directory: where the steps are; made if `create`.
      create: False only looks.
    """

    def __init__(self, directory, *, create=False):
        self._directory = epath.Path(Path(directory).absolute())
        logging.getLogger("absl").addFilter(_not_orbaxs)
        keep_last = checkpoint_managers.LatestN(2)
        keep_best = checkpoint_managers.BestN(
            n=1, get_metric_fn=lambda metrics: metrics["top1"], keep_checkpoints_without_metrics=False
        )
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                create=create,
                cleanup_tmp_directories=create,
                best_fn=lambda metrics: metrics["top1"],
                best_mode="max",
                preservation_policy=checkpoint_managers.AnyPreservationPolicy([keep_last, keep_best]),
            ),
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        try:
            self._manager.close()
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot write a checkpoint in {self._directory}: {_first_line(error)}") from error

    def steps(self):
        """All steps kept, ascending."""
        return sorted(self._manager.all_steps())

    def find(self, which):
        """The step meant by "last", "best" or a number.

        Raises:
          CheckpointError: there is none.
        """
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"there is no checkpoint in {self._directory}; train first")
        if which == "last":
            return steps[-1]
        if which == "best":
            best = self._manager.best_step()
            if best is None:
                raise CheckpointError(f"no checkpoint in {self._directory} has been evaluated yet; use last")
            return best
        if str(which).isdecimal() and int(which) in steps:
            return int(which)
        raise CheckpointError(f"there is no checkpoint {which!r} in {self._directory}; there are last, best, {steps}")

    def save(self, state, meta, metrics=None):
        """Starts writing a TrainState under its step; returns once the arrays are copied off the devices.

        Args:
          state: TrainState.
          meta: JSON-able dict.
          metrics: {"top1": ...} of the evaluation of this step, if there was one: it decides what "best" means.

        Raises:
          CheckpointError: Orbax did not take it, or an earlier write failed.
        """
        step = int(state.step)
        items = {
            "variables": ocp.args.StandardSave(state.variables),
            "optimizer": ocp.args.StandardSave({"step": state.step, "state": state.optimizer}),
            "meta": ocp.args.JsonSave(meta),
        }
        if state.ema is not None:
            items["ema"] = ocp.args.StandardSave(state.ema)
        try:
            saved = self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics, force=True)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"cannot write checkpoint {step} in {self._directory}: {_first_line(error)}"
            ) from error
        if not saved:
            raise CheckpointError(f"checkpoint {step} in {self._directory} was not written: it is there already")

    def wait(self):
        """Returns when everything is on disk; raises CheckpointError if a write failed."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot write a checkpoint in {self._directory}: {_first_line(error)}") from error

    def restore(self, step, state, mesh):
        """Reads a whole TrainState, each array onto its devices.

        Args:
          step: a step of `steps()`.
          state: a TrainState of arrays or ShapeDtypeStructs with the wanted shapes.
          mesh: see `make_mesh`.
        """
        target = _with_shardings(state, mesh)
        items = {"variables": target.variables, "optimizer": {"step": target.step, "state": target.optimizer}}
        if target.ema is not None:
            items["ema"] = target.ema
        restored = self._restore(step, {name: ocp.args.StandardRestore(item) for name, item in items.items()})
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
        if ema and not (self._directory / str(step) / name).exists():
            raise CheckpointError(f"checkpoint {step} in {self._directory} keeps no moving average (ema_decay was 0)")
        return self._restore(step, {name: ocp.args.StandardRestore(_with_shardings(variables, mesh))})[name]

    def restore_meta(self, step):
        """Reads the JSON saved with a step."""
        return self._restore(step, {"meta": ocp.args.JsonRestore()})["meta"]

    def _restore(self, step, items):
        try:
            with _patient_event_loops():
                return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # tensorstore, Orbax and JSON each have their own for damaged files
            raise CheckpointError(
                f"cannot read checkpoint {step} in {self._directory}: {_first_line(error)}; "
                "use another one, or delete its folder to go on from the one before"
            ) from error


def _with_shardings(tree, mesh):
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        state_shardings(tree, mesh),
    )


class _PatientEventLoop(asyncio.SelectorEventLoop):
    """Ends what still runs before it closes.

    Orbax closes its event loop at the first failed read. The other reads, still under way, would then print dozens of
    lines of tracebacks.
    """

    def close(self):
        if not self.is_closed() and (tasks := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        super().close()


class _PatientPolicy(asyncio.DefaultEventLoopPolicy):
    _loop_factory = _PatientEventLoop


@contextlib.contextmanager
def _patient_event_loops():
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(_PatientPolicy())
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(before)


def _not_orbaxs(record):
    """False for what Orbax logs: hundreds of lines about errors that it raises as well, and a warning at each save
    without metrics, such as that of a run asked to stop."""
    return "/orbax/" not in record.pathname.replace("\\", "/")


def _first_line(error):
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return textwrap.shorten(line, 300, placeholder=" ...").rstrip(".:")
