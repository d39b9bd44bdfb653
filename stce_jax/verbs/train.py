"""`stce train`: from a config to a trained model in a workdir, resuming where an earlier process stopped.

Order of opening: processes -> data -> mesh -> model -> workdir -> state (restored or new) -> loop. What can be refused
is refused before anything of the workdir is changed.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stce_jax.analysis.costs import work_of_sizes
from stce_jax.analysis.curves import plot_curves
from stce_jax.convert.initial import initialize
from stce_jax.errors import CheckpointError, ConfigError, DivergedError
from stce_jax.paths import first_line
from stce_jax.platform.life import seconds_of_life
from stce_jax.processes import peers as processes
from stce_jax.processes.speaking import say, warn
from stce_jax.processes.stopping import Exit, StopSignals, exit_on_signal
from stce_jax.processes.watch import Watch
from stce_jax.training import assemble as runs
from stce_jax.training import optimization
from stce_jax.training.evaluation import eval_step
from stce_jax.training.loop import ADVICE, TrainLoop
from stce_jax.training.memory import check_memory
from stce_jax.training.mesh import check_batch_size, connect, make_mesh
from stce_jax.training.objective import build_objective, class_weights
from stce_jax.training.options import check_saved
from stce_jax.training.patience import Patience
from stce_jax.training.phases import Phases, build_sizes, mixed_steps
from stce_jax.training.progress import TrainProgress, show_opening
from stce_jax.training.setup import Course, RunDivergedError, RunReplannedError, Setup, StartingPoint
from stce_jax.training.sizes import check_model
from stce_jax.training.step import check_accumulation, run_key
from stce_jax.training.stepping import build_stepping
from stce_jax.training.timetable import Timetable
from stce_jax.verbs import library
from stce_jax.verbs.extending import continued, why_finished
from stce_jax.verbs.first_weights import first_weights, follow_weights
from stce_jax.verbs.opening import opening
from stce_jax.verbs.planning import planned
from stce_jax.workdir import config as configuration
from stce_jax.workdir import layout
from stce_jax.workdir.checkpoint_writer import CheckpointWriter
from stce_jax.workdir.claim import Claim
from stce_jax.workdir.loggers import check_installed
from stce_jax.workdir.meta import check_class_weights, check_fingerprint, checkpoint_meta
from stce_jax.workdir.metrics import MetricsLog
from stce_jax.workdir.score import said


def train(
    config: Any, workdir: str | Path, *, allow_config_change: bool = False, exit_process: Exit | None = None
) -> dict[str, float]:
    """Trains the model of `config` in `workdir`; resumes if the same config was trained there before.

    Args:
      config: a ConfigDict of `load_config`, or what that takes: a shipped config's name or a file.
      workdir: directory for config, metrics, checkpoints and plots, local or remote.
      allow_config_change: resume with this config even if the workdir began with another.
      exit_process: ends the process, see `StopSignals`; None if this function may not end it. With it, `config.minutes`
        count from the process's start.

    Returns:
      The last evaluation: {"loss", "top1", "top5"}, means over the validation images; "map" in place of the last two
      where `config.task` is "multi_label".

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
        check_installed(config.loggers)
        trial: Any = runs.build_model(config, 1)  # refuses its options before data are prepared
        check_model(trial, tuple(config.progressive_sizes))
        dataset = runs.open_dataset(config)
        # What times the machine for a plan computes as the run will.
        with library.for_training(config, dataset, trial) if config.minutes else contextlib.nullcontext():
            config, pace = planned(config, workdir, dataset, seconds_of_life() if exit_process else 0.0)
        config, dataset, source, followed = follow_weights(config, workdir, dataset, trial.unshaped_options())
        mesh = make_mesh(config.fsdp_devices)
        check_batch_size(config.batch_size, mesh)
        check_accumulation(config.batch_size, config.accumulate, mesh)
        model = runs.build_model(config, len(dataset.class_names))
        runs.check_options(config)
        stack.enter_context(library.for_training(config, dataset, model))
        rules = optimization.parameter_rules(config, model)
        timetable = runs.build_timetable(config, dataset)
        weights = class_weights(config, dataset)
        meta = checkpoint_meta(config, dataset, weights)
        processes.agree(
            {
                "code": processes.code_digest(),
                "config": configuration.to_json(config, places=False),
                "workdir": str(workdir),
                "fsdp_devices": str(config.fsdp_devices),
                "data": dataset.fingerprint,
                "class_weights": str(meta.get("class_weights")),
            }
        )
        connect(mesh)
        initial_weights, begins = first_weights(config, source, model, dataset)
        check_claim = _no_claim
        if processes.is_main():
            check_claim = stack.enter_context(Claim(workdir)).check
            layout.check_config(workdir, config, allow_change=allow_config_change)
        checkpoints = CheckpointWriter(layout.checkpoints_in(workdir), keep=config.keep_checkpoints)
        stack.enter_context(checkpoints)
        stack.enter_context(processes.together())  # innermost: what the others' contexts wait for may never come
        found = _find(checkpoints, dataset)
        if found:
            check_class_weights(found[1], meta, allow_change=allow_config_change)
            timetable = continued(config, dataset, *found)
        course = _course(config, dataset, timetable, model, rules, weights, mesh)
        checkpoints.scheduled = timetable.saves
        check_memory(config, course.stepping.state_shapes, mesh)
        setup = Setup(
            config=config,
            workdir=workdir,
            dataset=dataset,
            mesh=mesh,
            course=course,
            key=run_key(config.seed, mesh),
            eval_step=eval_step(model, dataset, config, mesh),
            val_views=runs.eval_views(config, dataset),
            checkpoints=checkpoints,
            stop=stop,
            watch=watch,
            check_claim=check_claim,
            meta=meta,
            pace=pace,
        )
        step, final = (found[0], found[1]["metrics"] or {}) if found else (0, {})
        patience = Patience(config.patience, config.patience_metric, found[1].get("patience") if found else None)
        finished = bool(final) and (step >= timetable.total or patience.ran_out)
        if not finished and processes.is_main():
            begins = f"resuming from step {step} of {timetable.total}" if step else begins
            begins = begins or f"new weights, seed {config.seed}"
            show_opening(opening(setup, model, trained=rules.note, begins="; ".join([begins, *followed])))
        start = _restore(setup, *found) if found else _begin(setup, initial_weights)
        if processes.is_main():
            layout.write_config(workdir, config)
        if finished:
            say(why_finished(step, timetable.total, final, patience))
            _plot(workdir)
        else:
            replanned = functools.partial(_replanned, model=model, rules=rules, weights=weights)
            final = _train_to_the_end(setup, start, replanned)
    waiting = exit_on_signal(exit_process, "after its last step") if exit_process else contextlib.nullcontext()
    with waiting:
        processes.leave()
    return final


def _course(config: Any, dataset: Any, timetable: Timetable, model: Any, rules: Any, weights: Any, mesh: Any) -> Course:
    """What of a run follows from its timetable."""
    mixed, sizes = mixed_steps(config, timetable), build_sizes(config, timetable)
    augment = runs.build_augment(config, dataset, offset=timetable.offset, mixed_steps=mixed)
    stepping = build_stepping(config, model, rules, timetable, augment, build_objective(config, weights), mesh)
    return Course(
        timetable=timetable,
        stepping=stepping,
        phases=Phases(model, stepping.make_step, sizes),
        work=work_of_sizes(model, sizes),
        mixed_steps=mixed,
    )


def _begin(setup: Setup, weights: Mapping[str, Any] | None) -> StartingPoint:
    """The start of a new run, with these weights if there are any."""
    stepping = setup.course.stepping
    begun = stepping.begin_state(setup.config.seed)
    if not weights:
        return StartingPoint(0, begun)
    state = initialize(begun(), weights, stepping.optimizer)
    return StartingPoint(0, lambda: state)


def _replanned(setup: Setup, config: Any, model: Any, rules: Any, weights: Any) -> tuple[Setup, StartingPoint]:
    """What a run goes on with that gets other epochs on its way: as if it were stopped and resumed with them."""
    found = _find(setup.checkpoints, setup.dataset)
    assert found, "it has just been saved"
    say(f"off its plan of {config.minutes:g} minutes: {config.epochs:g} epochs in place of {setup.config.epochs:g}")
    timetable = continued(config, setup.dataset, *found)
    course = _course(config, setup.dataset, timetable, model, rules, weights, setup.mesh)
    setup.checkpoints.scheduled = timetable.saves
    meta = checkpoint_meta(config, setup.dataset, weights)
    setup = dataclasses.replace(setup, config=config, meta=meta, course=course)
    layout.write_config(setup.workdir, config)
    return setup, _restore(setup, *found)


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


def _restore(setup: Setup, step: int, meta: dict[str, Any]) -> StartingPoint:
    changed = "; ".join(configuration.differences(meta["config"], setup.config))
    state = setup.checkpoints.restore(step, setup.course.stepping.state_shapes, changed=changed)
    return StartingPoint(step, lambda: state, meta["metrics"], meta["salt"], meta["guard"], meta.get("patience"))


def _train_to_the_end(setup: Setup, start: StartingPoint, replanned: Callable[..., Any]) -> dict[str, float]:
    """The last metrics; `replanned`(setup, config) gives the setup and the state of a run that goes on by a config."""
    while True:
        try:
            return _train_by_plan(setup, start)
        except RunReplannedError as change:
            config = change.config
        del start  # there may be no memory for two states
        setup, start = replanned(setup, config)


def _train_by_plan(setup: Setup, start: StartingPoint) -> dict[str, float]:
    """The last metrics; where a run diverges, it goes back to a checkpoint and continues with other images.

    Raises:
      RunReplannedError: it must go on by another config.
    """
    first, main = start.step, processes.is_main()
    found: dict[str, Any] = {"after_step": first, "evaluated": bool(start.metrics), "writes": main}
    with (
        MetricsLog(setup.workdir, setup.config.loggers, configuration.of_result(setup.config), **found) as log,
        TrainProgress(setup.course.timetable.total, first, quiet=not main, work=setup.course.work) as progress,
    ):
        while True:
            loop = TrainLoop(setup, start, log, progress)
            rollbacks = start.rollbacks
            del start  # and below the loop: there may be no memory for two states
            try:
                final, data_wait = loop.run()
                log.finish(final)
                break
            except RunDivergedError as error:
                reason = str(error)
            del loop
            start = _roll_back(setup, rollbacks, reason, log)
    plot = _plot(setup.workdir)
    say(f"finished: {said(final)}  waited for data {100 * data_wait:.0f}% of the time  {plot}")
    return final


def _roll_back(setup: Setup, rollbacks: int, reason: str, log: MetricsLog) -> StartingPoint:
    """The point from which a run continues after it has diverged."""
    limit = setup.config.divergence.max_rollbacks
    if rollbacks >= limit:
        raise DivergedError(f"{reason}, after the run had gone back {rollbacks} times; {ADVICE}")
    setup.watch.pause()
    found = _find(setup.checkpoints, setup.dataset, scheduled=True)
    if found is None or found[0] < setup.course.timetable.origin.step:
        raise DivergedError(f"{reason}, before the first checkpoint; {ADVICE}")
    start = _restore(setup, *found)
    step, count = found[0], rollbacks + 1
    warn(f"{reason}; went back to step {step}, continuing with other images ({count} of {limit})")
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


def _no_claim() -> None:
    """Checks nothing: another process holds the claim on the workdir."""
