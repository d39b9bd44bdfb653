"""`stce train`: from a config to a trained model in a workdir, resuming where an earlier process stopped.

Order of opening: processes -> data -> mesh -> model -> workdir -> state (restored or new) -> loop. What can be refused
is refused before anything of the workdir is changed.
"""

import contextlib
import dataclasses
import sys

from stce_jax.errors import DivergedError
from stce_jax.paths import first_line
from stce_jax.processes import peers as processes
from stce_jax.processes.stopping import StopSignals
from stce_jax.processes.watch import Watch
from stce_jax.training import assemble as runs
from stce_jax.training.loop import ADVICE, Job, Loop, Position, RunDivergedError
from stce_jax.training.mesh import check_batch_size, make_mesh
from stce_jax.training.progress import TrainProgress
from stce_jax.training.state import abstract_state, abstract_variables, init_state
from stce_jax.training.step import check_accumulation, make_train_step, run_key
from stce_jax.verbs import evaluate
from stce_jax.workdir import config as configuration
from stce_jax.workdir import layout, weights
from stce_jax.workdir.checkpoint_writer import CheckpointWriter
from stce_jax.workdir.claim import Claim
from stce_jax.workdir.metrics import MetricsLog, plot_curves


def train(config, workdir, *, allow_config_change=False, leave=None):
    """Trains what `config` says, in `workdir`; goes on if the same config has been at work there.

    Args:
      config: a ConfigDict of `load_config`.
      workdir: directory for config, metrics, checkpoints and plots, local or remote; see the README.
      allow_config_change: go on with this config even if the workdir began with another.
      leave: function that ends the process, see `StopSignals`; None if it is not this function's to end.

    Returns:
      The last evaluation: {"loss", "top1", "top5"}, means over the validation images.

    Raises:
      StceError: see `stce_jax.errors`; PreemptedError once the state is saved after SIGTERM or SIGINT.
    """
    processes.start()
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopSignals(leave))
        watch = stack.enter_context(Watch(config.step_timeout, processes.own_name()))
        dataset = runs.open_dataset(config)
        mesh = make_mesh(config.fsdp_devices)
        check_batch_size(config.batch_size, mesh)
        check_accumulation(config.batch_size, config.accumulate, mesh)
        model = runs.build_model(config, len(dataset.class_names))
        augment = runs.build_augment(config, dataset)
        timetable = runs.build_timetable(config, dataset)
        schedule, optimizer = runs.build_optimizer(config, timetable)
        meta = runs.checkpoint_meta(config, dataset)
        facts = {"config": configuration.to_json(config, places=False), "workdir": str(workdir)}
        facts |= {"fsdp_devices": str(config.fsdp_devices), "data": dataset.fingerprint}
        processes.agree({"code": processes.code_digest(), **facts})
        arrays = _initial_weights(config, workdir, model, dataset)
        check_claim = _nothing
        if processes.is_main():
            check_claim = stack.enter_context(Claim(workdir)).check
            layout.check_config(workdir, config, allow_change=allow_config_change)
        directory, scheduled = layout.checkpoints_in(workdir), timetable.evaluates
        checkpoints = CheckpointWriter(directory, keep=config.keep_checkpoints, scheduled=scheduled)
        stack.enter_context(checkpoints)
        stack.enter_context(processes.together())  # innermost: what the others' contexts wait for may never come
        shape = {"image_size": config.image_size, "with_ema": config.optimizer.ema_decay > 0}
        blank = abstract_state(model, optimizer, **shape)
        options = {"accumulate": config.accumulate, "deterministic": config.deterministic}
        options |= {"ema_decay": config.optimizer.ema_decay, "state": blank, "mesh": mesh}
        job = Job(
            config=config,
            workdir=workdir,
            dataset=dataset,
            mesh=mesh,
            timetable=timetable,
            schedule=schedule,
            blank=blank,
            train_step=make_train_step(model, optimizer, augment, **options),
            key=run_key(config.seed, mesh),
            eval_step=evaluate.eval_step(model, dataset, deterministic=config.deterministic),
            val_views=runs.eval_views(config, dataset),
            checkpoints=checkpoints,
            stop=stop,
            watch=watch,
            check_claim=check_claim,
            meta=meta,
        )
        position = _restore(job)
        if position is None:
            state = init_state(model, optimizer, seed=config.seed, mesh=mesh, **shape)
            position = Position(weights.initialize(state, arrays) if arrays else state)
        if processes.is_main():
            layout.write_config(workdir, config)
        step, final = int(position.state.step), position.metrics
        if step >= timetable.total and final:
            _say(f"already finished at step {step}: top-1 {100 * final['top1']:.2f}%; nothing to do")
            _plot(job)
        else:
            if step:
                _say(f"resuming from step {step} of {timetable.total}")
            final = _train(job, position)
    processes.leave()
    return final


def _initial_weights(config, workdir, model, dataset):
    """The arrays that a new run is to begin with in place of random ones; {} for a run that goes on."""
    if not config.init_from or layout.has_checkpoint(workdir):
        return {}
    expected = abstract_variables(model, config.image_size)
    arrays, said = weights.read_weights(config.init_from, expected, model, dataset.class_ids)
    _say(said)
    return arrays


def _restore(job, *, scheduled=False):
    """The position of the newest whole checkpoint, or of the newest that was made on schedule; None if there is none.

    A run that diverged goes back to one on schedule, so that it takes the same way however often it was stopped.
    """
    step = job.checkpoints.recover(scheduled=scheduled)
    if step is None:
        return None
    meta = job.checkpoints.restore_meta(step)
    runs.check_fingerprint(meta, job.dataset)
    state = job.checkpoints.restore(step, job.blank, job.mesh)
    return Position(state, meta["metrics"], meta["salt"], meta["guard"])


def _train(job, position):
    """Trains to the end; where the run diverges, goes back to a checkpoint and on with other images."""
    start, main = int(position.state.step), processes.is_main()
    with (
        MetricsLog(job.workdir, after_step=start, evaluated=bool(position.metrics), writes=main) as log,
        TrainProgress(job.timetable.total, start, quiet=not main) as progress,
    ):
        while True:
            loop = Loop(job, position, log, progress)
            salt, position, reason = position.salt, None, None
            try:
                final, waited = loop.run()
                break
            except RunDivergedError as error:
                reason = str(error)
            del loop  # and what it holds: there may be no memory for two states
            position = _go_back(job, salt, reason, log)
    plot = _plot(job)
    top1, top5 = 100 * final["top1"], 100 * final["top5"]
    _say(f"finished: top-1 {top1:.2f}%  top-5 {top5:.2f}%  waited for data {100 * waited:.0f}% of the time  {plot}")
    return final


def _go_back(job, salt, reason, log):
    """The position from which a run goes on after it has diverged."""
    most = job.config.divergence.max_rollbacks
    if salt >= most:
        raise DivergedError(f"{reason}, after the run had gone back {salt} times; {ADVICE}")
    job.watch.pause()
    position = _restore(job, scheduled=True)
    if position is None:
        raise DivergedError(f"{reason}, before the first checkpoint; {ADVICE}")
    step = int(position.state.step)
    _say(f"stce: {reason}; went back to step {step}, and on with other images ({salt + 1} of {most})", sys.stderr)
    log.rewind(step, evaluated=bool(position.metrics))
    return dataclasses.replace(position, salt=salt + 1, memory={**position.memory, "skipped": 0})


def _plot(job):
    """Draws the curves; a run that is finished does not fail for a picture."""
    if not processes.is_main():
        return ""
    try:
        return f"curves in {plot_curves(job.workdir)}"
    except OSError as error:
        return f"no curves: {first_line(error)}"


def _say(text, file=None):
    if processes.is_main():
        print(text, file=file, flush=True)


def _nothing():
    """What a process checks whose claim on the workdir another one holds."""
