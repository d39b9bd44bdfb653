"""`stce train`: from a config to a trained model in a workdir, resuming where an earlier process stopped.

Order of opening: processes -> data -> mesh -> model -> workdir -> state (restored or new) -> loop. What can be refused
is refused before anything of the workdir is changed.
"""

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from stce_jax.analysis.curves import plot_curves
from stce_jax.convert.following import follow, keep
from stce_jax.convert.initial import initialize, read_weights
from stce_jax.convert.sources import Source, open_source
from stce_jax.errors import CheckpointError, ConfigError, DivergedError
from stce_jax.models.bodies import Body
from stce_jax.paths import first_line
from stce_jax.platform import terminal
from stce_jax.processes import peers as processes
from stce_jax.processes.stopping import Exit, StopSignals, exit_on_signal
from stce_jax.processes.watch import Watch
from stce_jax.training import assemble as runs
from stce_jax.training.evaluation import eval_step
from stce_jax.training.loop import ADVICE, RunDivergedError, Setup, StartingPoint, TrainLoop
from stce_jax.training.memory import check_memory
from stce_jax.training.mesh import check_batch_size, connect, make_mesh, sharded_shapes
from stce_jax.training.options import check_saved
from stce_jax.training.phases import Phases
from stce_jax.training.preprocessing import with_normalization
from stce_jax.training.progress import TrainProgress
from stce_jax.training.state import abstract_state, abstract_variables, init_state
from stce_jax.training.step import check_accumulation, make_train_step, run_key
from stce_jax.training.timetable import Timetable
from stce_jax.workdir import config as configuration
from stce_jax.workdir import layout
from stce_jax.workdir.checkpoint_writer import CheckpointWriter
from stce_jax.workdir.claim import Claim
from stce_jax.workdir.meta import check_fingerprint, checkpoint_meta
from stce_jax.workdir.metrics import MetricsLog


def train(
    config: Any, workdir: str | Path, *, allow_config_change: bool = False, exit_process: Exit | None = None
) -> dict[str, float]:
    """Trains the model of `config` in `workdir`; resumes if the same config was trained there before.

    Args:
      config: a ConfigDict of `load_config`, or what that takes: a shipped config's name or a file.
      workdir: directory for config, metrics, checkpoints and plots, local or remote.
      allow_config_change: resume with this config even if the workdir began with another.
      exit_process: ends the process, see `StopSignals`; None if this function may not end it.

    Returns:
      The last evaluation: {"loss", "top1", "top5"}, means over the validation images.

    Raises:
      StceError: see `stce_jax.errors`; PreemptedError once the state is saved after SIGTERM or SIGINT.
    """
    processes.start()
    if isinstance(config, str | Path):
        config = runs.load_config(str(config))
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopSignals(exit_process))
        watch = stack.enter_context(Watch(config.step_timeout, processes.own_name()))
        layout.refuse_imported(workdir)
        trial: Any = runs.build_model(config, 1)  # refuses its options before data are prepared
        dataset = runs.open_dataset(config)
        config, dataset, source = _begin_with(config, workdir, dataset, trial.unshaped_options())
        mesh = make_mesh(config.fsdp_devices)
        check_batch_size(config.batch_size, mesh)
        check_accumulation(config.batch_size, config.accumulate, mesh)
        model = runs.build_model(config, len(dataset.class_names))
        runs.check_options(config)
        timetable = runs.build_timetable(config, dataset)
        meta = checkpoint_meta(config, dataset)
        processes.agree(
            {
                "code": processes.code_digest(),
                "config": configuration.to_json(config, places=False),
                "workdir": str(workdir),
                "fsdp_devices": str(config.fsdp_devices),
                "data": dataset.fingerprint,
            }
        )
        connect(mesh)
        initial_weights = _initial_weights(config, source, model, dataset)
        check_claim = _no_claim
        if processes.is_main():
            check_claim = stack.enter_context(Claim(workdir)).check
            layout.check_config(workdir, config, allow_change=allow_config_change)
        checkpoints = CheckpointWriter(layout.checkpoints_in(workdir), keep=config.keep_checkpoints)
        stack.enter_context(checkpoints)
        stack.enter_context(processes.together())  # innermost: what the others' contexts wait for may never come
        found = _find(checkpoints, dataset)
        if found:
            timetable = _continue(config, dataset, *found)
        checkpoints.scheduled = timetable.saves
        schedule, optimizer = runs.build_optimizer(config, timetable)
        augment = runs.build_augment(config, dataset, offset=timetable.offset)
        shape: Any = {"image_size": config.image_size, "with_ema": config.optimizer.ema_decay > 0}
        state_shapes = sharded_shapes(abstract_state(model, optimizer, **shape), mesh)
        check_memory(config, state_shapes, mesh)
        make_step = functools.partial(
            make_train_step,
            optimizer=optimizer,
            augment=augment,
            ema_decay=config.optimizer.ema_decay,
            state=state_shapes,
            mesh=mesh,
            accumulate=config.accumulate,
            deterministic=config.deterministic,
        )
        setup = Setup(
            config=config,
            workdir=workdir,
            dataset=dataset,
            mesh=mesh,
            timetable=timetable,
            schedule=schedule,
            state_shapes=state_shapes,
            phases=Phases(model, make_step),
            key=run_key(config.seed, mesh),
            eval_step=eval_step(model, dataset, deterministic=config.deterministic),
            val_views=runs.eval_views(config, dataset),
            checkpoints=checkpoints,
            stop=stop,
            watch=watch,
            check_claim=check_claim,
            meta=meta,
        )
        if found:
            start = _restore(setup, *found)
        else:
            state = init_state(model, optimizer, seed=config.seed, mesh=mesh, **shape)
            start = StartingPoint(initialize(state, initial_weights) if initial_weights else state)
        if processes.is_main():
            layout.write_config(workdir, config)
        step, final = int(start.state.step), start.metrics
        if step >= timetable.total and final:
            _print(f"already finished at step {step}: top-1 {100 * final['top1']:.2f}%; nothing to do")
            _plot(workdir)
        else:
            if step:
                _print(f"resuming from step {step} of {timetable.total}")
            final = _train_to_the_end(setup, start)
    waiting = exit_on_signal(exit_process, "after its last step") if exit_process else contextlib.nullcontext()
    with waiting:
        processes.leave()
    return final


def _begin_with(
    config: Any, workdir: str | Path, dataset: Any, known: dict[str, Any]
) -> tuple[Any, Any, Source | None]:
    """(config and dataset with the preprocessing of `init_from`'s weights, those weights; None if a run resumes).

    `known` are options of the run's model, for what files do not tell.
    """
    if not config.init_from:
        return config, dataset, None
    if layout.has_checkpoint(workdir):
        config = keep(config, layout.read_config(workdir))
        return config, with_normalization(dataset, config), None
    source = open_source(config.init_from, known)
    config, followed, differing = follow(config, source.preprocessing, dataset.mean, dataset.std)
    for line in followed:
        _print(line)
    if differing and processes.is_main():
        terminal.warn(f"note: {'; '.join(differing)}")
    return config, with_normalization(dataset, config), source


def _initial_weights(config: Any, source: Source | None, model: Body, dataset: Any) -> dict[str, np.ndarray]:
    """The arrays of `init_from` that replace a new run's random ones; {} for a run that resumes."""
    if source is None:
        return {}
    expected = abstract_variables(model, config.image_size)
    arrays, line = read_weights(source, expected, model, dataset.class_ids)
    _print(line)
    return arrays


def _find(checkpoints: CheckpointWriter, dataset: Any, *, scheduled: bool = False) -> tuple[int, dict[str, Any]] | None:
    """(step, meta) of the newest whole checkpoint, or the newest made on schedule; its config is read. None: no one.

    A run that diverged goes back to one on schedule, so that it takes the same course however often it was stopped.
    """
    step = checkpoints.recover(scheduled=scheduled)
    if step is None:
        return None
    meta = checkpoints.restore_meta(step, "config", "fingerprint", "salt", "guard")
    check_fingerprint(meta, dataset)
    own = layout.config_of(meta, step)
    try:
        check_saved(own)
    except ConfigError as error:
        raise CheckpointError(f"checkpoint {step} cannot be used: {error}") from error
    return step, {**meta, "config": own}


def _continue(config: Any, dataset: Any, step: int, meta: dict[str, Any]) -> Timetable:
    """The timetable by which a config continues from a checkpoint; where that differs from its own, says so."""
    if config.init_from and config.init_from != meta["config"]["init_from"]:
        raise ConfigError(
            f"--init_from={config.init_from} is for new runs, and this one is at step {step}; give another --workdir, "
            "or leave it out"
        )
    before, own = runs.saved_timetable(meta, dataset), meta["config"]
    timetable = before.resumed(step, batch_size=config.batch_size, epochs=config.epochs, eval_every=config.eval_every)
    if timetable != before and step < timetable.total:
        applied = step - meta["guard"]["skipped_in_all"]
        rate, old = runs.build_schedule(config, timetable)(applied), runs.build_schedule(own, before)(applied)
        _print(
            f"continuing at epoch {timetable.epoch_after(step):.2f} of {config.epochs:g}; the learning rate there is "
            f"{float(rate):.3g} by this config, it was {float(old):.3g}"
        )
    return timetable


def _restore(setup: Setup, step: int, meta: dict[str, Any]) -> StartingPoint:
    changed = "; ".join(configuration.differences(meta["config"], setup.config))
    state = setup.checkpoints.restore(step, setup.state_shapes, changed=changed)
    return StartingPoint(state, meta["metrics"], meta["salt"], meta["guard"])


def _train_to_the_end(setup: Setup, start: StartingPoint) -> dict[str, float]:
    """Trains; where the run diverges, goes back to a checkpoint and continues with other images."""
    first, main = int(start.state.step), processes.is_main()
    with (
        MetricsLog(setup.workdir, after_step=first, evaluated=bool(start.metrics), writes=main) as log,
        TrainProgress(setup.timetable.total, first, quiet=not main) as progress,
    ):
        while True:
            loop = TrainLoop(setup, start, log, progress)
            rollbacks = start.rollbacks
            del start  # and below the loop: there may be no memory for two states
            try:
                final, data_wait = loop.run()
                break
            except RunDivergedError as error:
                reason = str(error)
            del loop
            start = _roll_back(setup, rollbacks, reason, log)
    plot = _plot(setup.workdir)
    top1, top5 = 100 * final["top1"], 100 * final["top5"]
    _print(
        f"finished: top-1 {top1:.2f}%  top-5 {top5:.2f}%  waited for data {100 * data_wait:.0f}% of the time  {plot}"
    )
    return final


def _roll_back(setup: Setup, rollbacks: int, reason: str, log: MetricsLog) -> StartingPoint:
    """The point from which a run continues after it has diverged."""
    limit = setup.config.divergence.max_rollbacks
    if rollbacks >= limit:
        raise DivergedError(f"{reason}, after the run had gone back {rollbacks} times; {ADVICE}")
    setup.watch.pause()
    found = _find(setup.checkpoints, setup.dataset, scheduled=True)
    if found is None or found[0] < setup.timetable.origin.step:
        raise DivergedError(f"{reason}, before the first checkpoint; {ADVICE}")
    start = _restore(setup, *found)
    step, count = found[0], rollbacks + 1
    if processes.is_main():
        terminal.warn(f"{reason}; went back to step {step}, continuing with other images ({count} of {limit})")
    log.rewind(step, evaluated=bool(start.metrics))
    assert start.guard is not None
    return dataclasses.replace(start, rollbacks=count, guard={**start.guard, "skipped": 0})


def _plot(workdir: str | Path) -> str:
    """Draws the curves; a run that is finished does not fail for a picture."""
    if not processes.is_main():
        return ""
    try:
        return f"curves in {plot_curves(workdir)}"
    except Exception as error:  # of matplotlib, its fonts and caches anything
        return f"no curves: {first_line(error)}"


def _print(text: str) -> None:
    if processes.is_main():
        terminal.say(text)


def _no_claim() -> None:
    """Checks nothing: another process holds the claim on the workdir."""
