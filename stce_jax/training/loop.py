"""The loop of a run, from a position on to the end: step -> log -> evaluate -> save."""

import dataclasses
import math
import sys
from typing import Any

import jax
import numpy as np

from stce_jax.data.loader import to_devices, with_asked
from stce_jax.errors import DivergedError
from stce_jax.processes import peers as processes
from stce_jax.processes.stopping import StopSignals, stopped
from stce_jax.processes.watch import Watch
from stce_jax.training import assemble as runs
from stce_jax.training.guard import DivergenceGuard
from stce_jax.training.mesh import batch_sharding
from stce_jax.training.timetable import Timetable
from stce_jax.training.window import Window
from stce_jax.verbs import evaluate
from stce_jax.workdir.checkpoint_writer import CheckpointWriter
from stce_jax.workdir.metrics import log_skipped

ADVICE = "try a lower --config.optimizer.learning_rate, or --config.optimizer.clip_norm=1"


@dataclasses.dataclass(frozen=True)
class Job:
    """What stays the same from the first to the last step."""

    config: Any
    workdir: Any
    dataset: Any
    mesh: Any
    timetable: Timetable
    schedule: Any
    blank: Any  # the state's shapes
    train_step: Any
    key: Any  # of the run's draws, on the devices
    eval_step: Any
    val_views: Any
    checkpoints: CheckpointWriter
    stop: StopSignals
    watch: Watch
    check_claim: Any  # function that raises if the workdir is no longer this job's
    meta: dict


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a run is: a state, and how it came there."""

    state: Any
    metrics: Any = None  # of the state's evaluation, if it has taken place
    salt: int = 0  # of the order of images: how often the run has gone back
    memory: Any = None  # of the divergence guard


class RunDivergedError(Exception):
    """The run cannot go on like this, and is to go back."""


class Loop:
    """One passage from a position to the end, or to where the run is stopped or diverges.

    Args:
      job, position: see there.
      log: MetricsLog.
      progress: TrainProgress.
    """

    def __init__(self, job, position, log, progress):
        options = job.config.divergence
        self._job, self._log, self._progress = job, log, progress
        self._state, self._salt, self._metrics = position.state, position.salt, position.metrics
        self._guard = DivergenceGuard(
            max_skipped=options.max_skipped, loss_spike=options.loss_spike, memory=position.memory
        )
        self._alone = jax.process_count() == 1
        self._saved = int(position.state.step)
        self._window = Window(job.config.batch_size)
        self._rate = jax.jit(job.schedule).lower(jax.ShapeDtypeStruct((), np.int32)).compile()

    def run(self):
        """Returns (metrics of the last evaluation, share of the time spent waiting for data).

        Raises:
          RunDivergedError: the run is to go back.
          PreemptedError: all is saved after a signal.
          StceError: see `stce_jax.errors`; what could be saved is.
        """
        job, config, start = self._job, self._job.config, self._saved
        job.stop.nothing_to_save(start)
        hurry = (lambda: job.stop.asked) if self._alone else None  # of several, none may leave a step alone
        loading = runs.train_batches(config, job.dataset, start, self._salt, stop=hurry)
        with loading as batches, jax.transfer_guard("disallow"):  # all that goes to a device and back is written here
            batches = to_devices(with_asked(batches, lambda: job.stop.asked), batch_sharding(job.mesh))
            self._evaluate_what_is_left(start)
            job.watch.pause()  # the first step compiles
            for step in range(start + 1, job.timetable.total + 1):
                batch = self._next_batch(batches, step)
                job.check_claim()
                self._state, metrics = job.train_step(self._state, batch, job.key)
                stopping = self._see(self._window.add(step, metrics))
                job.watch.step(step)
                job.stop.something_to_save()
                job.checkpoints.check()
                if stopping or job.timetable.evaluates(step) or step % config.log_every == 0:
                    self._pause_at(step, stopping)
            job.checkpoints.wait()
        return self._metrics, self._window.waited_share()

    def _pause_at(self, step, stopping):
        """Logs the window, evaluates and saves if it is time, and stops if asked to."""
        job, due = self._job, self._job.timetable.evaluates(step)
        stopping = self._see(self._window.drain()) or stopping
        values, epoch = self._window.close(), step / job.timetable.epoch
        applied = np.int32(step - 1 - self._guard.skipped_in_all)  # skipped steps do not count for the rate
        rate = float(jax.device_get(self._rate(jax.device_put(applied))))
        self._log.write(step=step, epoch=epoch, split="train", **values, learning_rate=rate)
        self._progress.train(step, epoch, values)
        self._metrics = self._evaluate(step) if due else None
        stopping = stopping or (due and self._metrics is None)
        if due or stopping:
            self._save(step)
            self._window.restart_clock()
        if stopping and (step < job.timetable.total or self._metrics is None):
            job.checkpoints.wait()
            raise stopped(job.stop.asked or "a signal to another process", f"at step {step}, which is saved")

    def _evaluate_what_is_left(self, start):
        """Evaluates the position that the run goes on from, if a stop has kept that from taking place."""
        job = self._job
        due = job.timetable.evaluates(start) or start >= job.timetable.total
        if start and due and not self._metrics:
            self._metrics = self._evaluate(start)
            if self._metrics is None:
                raise stopped(job.stop.asked or "a signal to another process", f"at step {start}, which is saved")
            self._save(start)

    def _next_batch(self, batches, step):
        try:
            return self._window.next(batches)
        except Exception as error:  # no data; but the state is whole, and what it has learnt is kept
            if step - 1 > self._saved and self._alone:
                self._see(self._window.drain())
                self._metrics = None
                self._save(step - 1)
                self._job.checkpoints.wait()
            if self._job.stop.asked and self._alone:
                raise stopped(self._job.stop.asked, f"at step {step - 1}, which is saved") from error
            raise

    def _see(self, steps):
        """Looks at finished steps; returns whether a process was asked to stop, as all of them see it."""
        stopping = self._alone and bool(self._job.stop.asked)
        for step, values in steps:
            stopping = stopping or bool(values["asked"])
            if values["skipped"]:
                self._log_skipped(step, values)
            if reason := self._guard.see(values["loss"], values["skipped"]):
                jax.block_until_ready(self._state)  # what comes next may ask the devices in another order
                raise RunDivergedError(f"at step {step} {reason}")
        return stopping

    def _save(self, step):
        self._log.flush()
        more = {"epoch": step / self._job.timetable.epoch, "salt": self._salt, "guard": self._guard.memory()}
        self._job.checkpoints.save(self._state, self._job.meta | more, self._metrics)
        self._saved = step

    def _evaluate(self, step):
        """Evaluates and logs the state; returns its metrics, None if the run is to stop instead."""
        job = self._job

        def asked():
            job.watch.step(step, "the evaluation after step")  # a batch of it has ended
            return job.stop.asked

        job.watch.pause()
        variables = self._state.variables
        metrics = evaluate.mean_metrics(variables, job.eval_step, job.val_views, job.config, job.mesh, asked=asked)
        if metrics is None:
            return None
        if not math.isfinite(metrics["loss"]):
            raise DivergedError(f"the evaluation's loss is not finite at step {step}; {ADVICE}")
        epoch = step / job.timetable.epoch
        self._log.write(step=step, epoch=epoch, split="eval", **metrics)
        self._progress.evaluation(step, epoch, metrics)
        return metrics

    def _log_skipped(self, step, values):
        if processes.is_main():
            images = runs.batch_names(self._job.config, self._job.dataset, step - 1, self._salt)
            numbers = {name: values[name] for name in ("loss", "gradient_norm")}
            log_skipped(self._job.workdir, step=step, salt=self._salt, images=images, **numbers)
            cause = f"step {step} had no finite loss and gradient"
            print(f"stce: {cause}; it is not applied, its images are in skipped.jsonl", file=sys.stderr, flush=True)
