"""`stce train`: from a config to a trained model in a workdir, resuming where an earlier process stopped.

Order of opening: config -> data -> mesh -> model -> workdir -> state (restored or new) -> loop. Everything that can be
refused is refused before the workdir is touched. Order in the loop: step -> log -> evaluate -> save.
"""

import dataclasses
import math
import signal
import time

import jax
import numpy as np

from stce_jax import evaluate, runs
from stce_jax.data.loader import to_devices
from stce_jax.engine import optim
from stce_jax.engine.checkpoint import Checkpoints
from stce_jax.engine.mesh import batch_sharding, check_batch_size, make_mesh
from stce_jax.engine.metrics import MetricsLog, plot_curves, read_metrics
from stce_jax.engine.progress import TrainProgress
from stce_jax.engine.state import init_state
from stce_jax.engine.step import make_train_step
from stce_jax.errors import ConfigError, DivergedError, PreemptedError


@dataclasses.dataclass(frozen=True)
class Timetable:
    """When things happen, in steps.

    Attributes:
      epoch: steps of one pass over the training images, a fraction if the batch does not divide them.
      total: steps of the run.
      eval_every: steps between two evaluations, likewise a fraction: each takes place at the nearest step.
    """

    epoch: float
    total: int
    eval_every: float

    def evaluates(self, step):
        """Whether the state after `step` updates is evaluated and saved."""
        nearest = max(1, round(step / self.eval_every))
        return step == self.total or step == max(1, round(nearest * self.eval_every))


def train(config, workdir):
    """Trains what `config` says, in `workdir`; goes on if the same config has been at work there.

    Args:
      config: a ConfigDict of `load_config`.
      workdir: directory for config, metrics, checkpoints and plots; see the README.

    Returns:
      The last evaluation: {"loss", "top1", "top5"}, means over the validation images.

    Raises:
      StceError: see `stce_jax.errors`; PreemptedError once the state is saved after SIGTERM or SIGINT.
    """
    dataset = runs.open_dataset(config)
    mesh = make_mesh(config.fsdp_devices)
    check_batch_size(config.batch_size, mesh)
    model = runs.build_model(config, len(dataset.class_names))
    timetable = make_timetable(config, len(dataset.train))
    augment = runs.build_augment(config, dataset)
    meta = runs.checkpoint_meta(dataset)
    runs.claim_workdir(workdir, config)

    with StopSignals() as stop, Checkpoints(f"{workdir}/{runs.CHECKPOINTS}", create=True) as checkpoints:
        steps = checkpoints.steps()
        if steps and steps[-1] >= timetable.total:
            return _already_finished(workdir)
        schedule, optimizer = make_optimizer(config, timetable)
        with_ema = config.optimizer.ema_decay > 0
        state = init_state(
            model, optimizer, seed=config.seed, image_size=config.image_size, with_ema=with_ema, mesh=mesh
        )
        if steps:
            runs.check_fingerprint(checkpoints.restore_meta(steps[-1]), dataset)
            state = checkpoints.restore(steps[-1], state, mesh)
            print(f"resuming from step {steps[-1]} of {timetable.total}", flush=True)
        start = int(state.step)
        train_step = make_train_step(
            model,
            optimizer,
            augment,
            seed=config.seed,
            ema_decay=config.optimizer.ema_decay,
            state=state,
            mesh=mesh,
        )
        eval_step = evaluate.eval_step(model, dataset)
        val_views = runs.eval_views(config, dataset)

        with (
            runs.train_batches(config, dataset, start, stop=lambda: stop.asked) as batches,
            MetricsLog(workdir, after_step=start) as log,
            TrainProgress(timetable.total, start) as progress,
        ):
            batches = to_devices(batches, batch_sharding(mesh))
            window, saved = Window(config.batch_size), start
            for step in range(start + 1, timetable.total + 1):
                try:
                    batch = window.next(batches)
                except Exception as error:  # no data; but the state is whole, and what it has learnt is kept
                    if step - 1 > saved and window.is_finite():
                        checkpoints.save(state, meta | {"epoch": (step - 1) / timetable.epoch})
                        checkpoints.wait()
                    if stop.asked:
                        raise _stopped(stop, step - 1) from error
                    raise
                state, metrics = train_step(state, batch)
                window.add(metrics)
                epoch = step / timetable.epoch
                due = timetable.evaluates(step)
                if due or stop.asked or step % config.log_every == 0:
                    values = window.close()
                    _check_finite(values["loss"], step)
                    log.write(step=step, epoch=epoch, split="train", **values, learning_rate=float(schedule(step - 1)))
                    progress.train(step, epoch, values)
                if due:
                    final = evaluate.mean_metrics(state.variables, eval_step, val_views, config, mesh)
                    _check_finite(final["loss"], step)
                    log.write(step=step, epoch=epoch, split="eval", **final)
                    progress.evaluation(step, epoch, final)
                if due or stop.asked:
                    checkpoints.save(state, meta | {"epoch": epoch}, final if due else None)
                    saved = step
                    window.restart_clock()
                if stop.asked and step < timetable.total:
                    checkpoints.wait()
                    raise _stopped(stop, step)
            checkpoints.wait()
    plot = plot_curves(workdir)
    print(
        f"finished: top-1 {100 * final['top1']:.2f}%  top-5 {100 * final['top5']:.2f}%  "
        f"waited for data {100 * window.waited_share():.0f}% of the time  curves in {plot}",
        flush=True,
    )
    return final


def _stopped(stop, step):
    return PreemptedError(f"stopped by {stop.asked} at step {step}, which is saved; run again to go on")


def _check_finite(loss, step):
    if not math.isfinite(loss):
        raise DivergedError(
            f"the loss is not finite at step {step}; the last checkpoint is kept. "
            "Try a lower --config.optimizer.learning_rate, or --config.optimizer.clip_norm=1"
        )


def _already_finished(workdir):
    """Says so, and returns the last evaluation that the workdir's metrics hold."""
    last = [line for line in read_metrics(workdir) if line["split"] == "eval"][-1]
    plot_curves(workdir)
    print(f"already finished at step {last['step']}: top-1 {100 * last['top1']:.2f}%; nothing to do", flush=True)
    return {name: last[name] for name in ("loss", "top1", "top5")}


class Window:
    """The training steps since the last log line: mean metrics, images a second, share of time without data."""

    IN_FLIGHT = 2  # steps that the host may be ahead of the devices; more would only hold more batches in memory

    def __init__(self, batch_size):
        self._batch_size = batch_size
        self._metrics, self._last = [], None  # of the window's steps; of the step before the next
        self._compiled = False
        self._all_time, self._all_waited = 0.0, 0.0
        self.restart_clock()

    def restart_clock(self):
        """Leaves out of the next speed and share what came between the steps until now."""
        self._timed_steps, self._waited, self._start = 0, 0.0, time.monotonic()

    def next(self, batches):
        """The next batch; the time it takes counts as waiting if the devices have run out of work by then.

        They may have done so only towards the end of that time, so the share is an upper bound.
        """
        start = time.monotonic()
        batch = next(batches)
        if self._last is not None and self._last.is_ready():
            self._waited += time.monotonic() - start
        return batch

    def add(self, metrics):
        """Takes a step's metrics, still on the devices."""
        self._metrics.append(metrics)
        self._last = metrics["loss"]
        self._timed_steps += 1
        if len(self._metrics) > self.IN_FLIGHT:
            jax.block_until_ready(self._metrics[-1 - self.IN_FLIGHT])
        elif not self._compiled:
            jax.block_until_ready(metrics)
            self._compiled = True
            self.restart_clock()

    def close(self):
        """Means over the window as floats, "images_per_second" and "data_wait" (0..1); the next window begins.

        The run's first step, which compiles, is left out of both; alone in its window it has speed 0.
        """
        metrics = jax.device_get(self._metrics)
        elapsed = time.monotonic() - self._start
        values = {name: float(np.mean([step[name] for step in metrics])) for name in metrics[0]}
        values["images_per_second"] = self._timed_steps * self._batch_size / elapsed
        values["data_wait"] = self._waited / elapsed
        self._all_time, self._all_waited = self._all_time + elapsed, self._all_waited + self._waited
        self._metrics = []
        self.restart_clock()
        return values

    def is_finite(self):
        """Whether all losses since the last `close` are finite."""
        return all(math.isfinite(step["loss"]) for step in jax.device_get(self._metrics))

    def waited_share(self):
        """Share of the time of all closed windows that was spent waiting for data, 0..1."""
        return self._all_waited / self._all_time


class StopSignals:
    """While open, SIGTERM and SIGINT only set `asked` to the signal's name, so that a step is never cut in two."""

    def __init__(self):
        self.asked = ""
        self._before = {}

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number, frame):
        del frame
        self.asked = signal.Signals(number).name


def make_timetable(config, train_images):
    """The run's length in steps."""
    epoch = train_images / config.batch_size
    total = round(config.epochs * epoch)
    if total < 1:
        raise ConfigError(
            f"{config.epochs} epochs of {train_images} images are less than one batch of {config.batch_size}"
        )
    return Timetable(epoch, total, max(1.0, config.eval_every * epoch))


def make_optimizer(config, timetable):
    """(schedule, optimizer) of a config."""
    options = config.optimizer
    schedule = optim.make_schedule(
        peak=optim.peak_learning_rate(options.learning_rate, options.learning_rate_scaling, config.batch_size),
        warmup_from=options.warmup_learning_rate,
        final=options.final_learning_rate,
        warmup_steps=round(options.warmup_epochs * timetable.epoch),
        total_steps=timetable.total,
    )
    optimizer = optim.make_optimizer(
        schedule,
        weight_decay=options.weight_decay,
        beta1=options.beta1,
        beta2=options.beta2,
        epsilon=options.epsilon,
        clip_norm=options.clip_norm,
    )
    return schedule, optimizer
