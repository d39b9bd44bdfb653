"""The training loop, from a starting point to the end: step -> log -> evaluate -> save."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from stce_jax.data.loader import to_devices
from stce_jax.errors import DivergedError, PreemptedError
from stce_jax.platform import terminal
from stce_jax.processes import peers as processes
from stce_jax.processes.stop_flag import FLAG, flagged
from stce_jax.processes.stopping import stopped
from stce_jax.training import assemble as runs
from stce_jax.training import evaluation
from stce_jax.training.guard import DivergenceGuard
from stce_jax.training.mesh import batch_sharding
from stce_jax.training.patience import Patience
from stce_jax.training.phases import Phase
from stce_jax.training.progress import TrainProgress
from stce_jax.training.setup import RunDivergedError, RunReplannedError, Setup, StartingPoint
from stce_jax.training.state import TrainState
from stce_jax.training.window import Window
from stce_jax.workdir.metrics import MetricsLog, log_skipped

ADVICE = "try a lower --config.optimizer.learning_rate, or --config.optimizer.clip_norm=1, with --allow_config_change"


class TrainLoop:
    """Trains from a starting point to the end, or to where the run is stopped or diverges."""

    def __init__(self, setup: Setup, start: StartingPoint, log: MetricsLog, progress: TrainProgress) -> None:
        options = setup.config.divergence
        self._setup, self._log, self._progress = setup, log, progress
        self._course = setup.course
        self._begin: Callable[[], TrainState] | None = start.state
        self._state: Any = None  # until it is needed
        self._rollbacks, self._metrics = start.rollbacks, start.metrics
        self._guard = DivergenceGuard(max_skipped=options.max_skipped, loss_spike=options.loss_spike, state=start.guard)
        self._patience = Patience(setup.config.patience, setup.config.patience_metric, start.patience)
        self._alone = jax.process_count() == 1
        self._first = start.step + 1
        self._saved = self._first - 1
        self._window = Window(setup.config.batch_size)
        self._phase: Phase | None = None
        self._said_mixing = False
        self._learning_rate = (
            jax.jit(self._course.stepping.schedule).lower(jax.ShapeDtypeStruct((), np.int32)).compile()
        )

    def run(self) -> tuple[dict[str, float], float]:
        """Returns (metrics of the last evaluation, share of the time spent waiting for data).

        Raises:
          RunDivergedError: the run must go back.
          RunReplannedError: it must go on by another config.
          PreemptedError: everything is saved after a signal.
          StceError: see `stce_jax.errors`; what could be saved is.
        """
        setup, config, start = self._setup, self._setup.config, self._saved
        setup.stop.end_at_once(start)
        # A single process need not wait for data before it stops; of several, none may miss a step of the others.
        stop_waiting = self._stop_requested if self._alone else None
        position = self._course.timetable.position(start)
        sizes = self._course.phases.sizes
        size_of = sizes.seen_from(start).after if sizes else None
        loading = runs.train_batches(
            config, setup.dataset, position, self._rollbacks, stop=stop_waiting, size_of=size_of
        )
        with loading as host_batches, jax.transfer_guard("disallow"):  # every transfer is explicit
            batches = to_devices(flagged(host_batches, self._stop_requested), batch_sharding(setup.mesh))
            self._evaluate_if_missing(start)
            setup.watch.pause()  # the first step compiles
            self._compile_sizes(start)
            for step in range(start + 1, self._course.timetable.total + 1):
                if self._patience.ran_out:
                    epoch, reason = self._course.timetable.epoch_after(step - 1), self._patience.reason()
                    self._progress.print(f"stopped early at epoch {epoch:.2f} of {config.epochs:g}: {reason}")
                    break
                batch = self._next_batch(batches, step)
                setup.check_claim()
                self._state, metrics = self._train_step(step, batch)
                stopping = self._check(self._window.add(step, metrics))
                setup.watch.step(step)
                setup.stop.finish_step_first()
                setup.checkpoints.check()
                if stopping or self._logs(step):
                    self._log_evaluate_save(step, stopping)
            setup.checkpoints.wait()
        assert self._metrics, "the last step is always evaluated, and so is one after which patience has run out"
        return self._metrics, self._window.data_wait()

    def _compile_sizes(self, start: int) -> None:
        """Compiles the step of every size of images that is still to come, so that no change is waited for or fails."""
        setup, sizes = self._setup, self._course.phases.sizes
        sharding = batch_sharding(setup.mesh)
        for step in sizes.starts_from(start) if sizes else ():
            if step >= self._course.timetable.total:
                continue
            phase, rows = self._course.phase_after(step), setup.config.batch_size
            shapes: dict[str, Any] = {"image": ((rows, phase.side, phase.side, 3), np.uint8)}
            shapes |= {"label": ((rows, *setup.val_views.label_shape), np.int32), FLAG: ((rows,), np.int32)}
            batch = {name: jax.ShapeDtypeStruct(*shape, sharding=sharding) for name, shape in shapes.items()}
            self._compile(phase, batch)

    def _train_step(self, step: int, batch: Any) -> Any:
        """Makes a step: (state, metrics). Where another program begins, says so, and stops the clocks."""
        setup = self._setup
        if self._course.mixed_steps is not None and step > self._course.mixed_steps and not self._said_mixing:
            self._said_mixing = True
            self._progress.print(f"mixup and CutMix are off from step {step} on")
        phase = self._course.phase_after(step - 1)
        if phase is not self._phase:
            self._phase = phase
            if words := self._course.phases.says(phase):
                self._progress.print(f"{words} from step {step} on")
            setup.watch.pause()
            self._window.compiles()
        self._compile(phase, batch)
        self._take_state()
        return phase.step(self._state, batch, setup.key)

    def _compile(self, phase: Phase, batch: Any) -> None:
        """Compiles a phase's step, unless it is, for a batch, or its shapes."""
        if not self._course.phases.is_compiled(phase):
            words = self._course.phases.says(phase)
            with self._progress.compiling(f"the step for {words}" if words else "the step"):
                self._course.phases.compile(phase, self._course.stepping.state_shapes, batch, self._setup.key)

    def _take_state(self) -> None:
        if self._begin is not None:
            with jax.transfer_guard("allow"):  # a new one's key goes to all devices
                self._state, self._begin = self._begin(), None

    def _logs(self, step: int) -> bool:
        """Whether a line of metrics ends with this step, stopped or not."""
        return self._course.timetable.evaluates(step) or step % self._setup.config.log_every == 0

    def _stop_requested(self) -> bool:
        return bool(self._setup.stop.requested)

    def _log_evaluate_save(self, step: int, stopping: bool) -> None:
        """Logs the window, evaluates and saves if it is time, and stops if requested."""
        setup, due = self._setup, self._course.timetable.evaluates(step)
        stopping = self._check(self._window.drain()) or stopping
        values, epoch = self._window.close(), self._course.timetable.epoch_after(step)
        applied = np.int32(step - 1 - self._guard.total_skipped)  # skipped steps do not advance the schedule
        learning_rate = float(jax.device_get(self._learning_rate(jax.device_put(applied))))
        self._log.write(step=step, epoch=epoch, split="train", **values, learning_rate=learning_rate)
        self._progress.train(step, epoch, values)
        self._metrics = self._evaluate(step) if due else None
        stopping = stopping or (due and self._metrics is None)
        if due or stopping:
            self._save(step)
            self._window.restart_clock()
        ended = step == self._course.timetable.total or self._patience.ran_out
        if stopping and not (ended and self._metrics):
            setup.checkpoints.wait()
            raise self._stopped(step)
        if due and not ended and setup.pace and (config := setup.pace.corrected(setup.config, epoch)):
            setup.checkpoints.wait()
            raise RunReplannedError(config)

    def _evaluate_if_missing(self, start: int) -> None:
        """Evaluates the state that the run resumes from, if a stop has prevented its evaluation."""
        timetable = self._course.timetable
        due = timetable.evaluates(start) or start >= timetable.total
        if start and due and not self._metrics:
            self._take_state()
            self._metrics = self._evaluate(start)
            if self._metrics is None:
                raise self._stopped(start)
            self._save(start)

    def _stopped(self, step: int) -> PreemptedError:
        return stopped(self._setup.stop.requested or "a signal to another process", f"at step {step}, which is saved")

    def _next_batch(self, batches: Iterator[Any], step: int) -> Any:
        try:
            return self._window.next(batches)
        except Exception as error:  # there is no data; but the state is whole, and its progress is kept
            if step - 1 > self._saved and self._alone:
                self._check(self._window.drain())
                self._metrics = None
                self._save(step - 1)
                self._setup.checkpoints.wait()
            if self._stop_requested() and self._alone:
                raise self._stopped(step - 1) from error
            raise

    def _check(self, finished: Iterable[tuple[int, dict[str, float]]]) -> bool:
        """Checks finished steps for divergence; returns whether to stop, the same in every process."""
        stopping = self._alone and self._stop_requested()
        for step, values in finished:
            if step == self._first and not (values["skipped"] or self._logs(step)):
                self._progress.first(step, self._course.timetable.epoch_after(step), values)
            stopping = stopping or bool(values[FLAG])
            if values["skipped"]:
                self._log_skipped(step, values)
            if reason := self._guard.check(values["loss"], bool(values["skipped"])):
                jax.block_until_ready(self._state)  # what comes next may use the devices in another order
                raise RunDivergedError(f"at step {step} {reason}")
        return stopping

    def _save(self, step: int) -> None:
        self._log.flush()
        timetable = self._course.timetable
        own = {"salt": self._rollbacks, "guard": self._guard.state(), "patience": self._patience.state()}
        place = {"epoch": timetable.epoch_after(step), "origin": dataclasses.asdict(timetable.origin)}
        self._setup.checkpoints.save(self._state, self._setup.meta | place | own, self._metrics)
        self._saved = step

    def _evaluate(self, step: int) -> dict[str, float] | None:
        """Evaluates and logs the state; returns its metrics, None if the run must stop instead."""
        setup = self._setup

        def stop_requested() -> bool:
            setup.watch.step(step, "the evaluation after step")  # a batch of it has ended
            return self._stop_requested()

        setup.watch.pause()
        metrics = evaluation.mean_metrics(
            self._state.variables,
            setup.eval_step,
            setup.val_views,
            setup.config,
            setup.mesh,
            stop_requested=stop_requested,
        )
        if metrics is None:
            return None
        if not math.isfinite(metrics["loss"]):
            raise DivergedError(f"the evaluation's loss is not finite at step {step}; {ADVICE}")
        epoch = self._course.timetable.epoch_after(step)
        self._log.write(step=step, epoch=epoch, split="eval", **metrics)
        self._progress.evaluation(step, epoch, metrics)
        self._patience.add(epoch, metrics)
        return {name: value for name, value in metrics.items() if math.isfinite(value)}  # a module's may be not

    def _log_skipped(self, step: int, values: dict[str, float]) -> None:
        if processes.is_main():
            position = self._course.timetable.position(step - 1)
            images = runs.batch_names(self._setup.config, self._setup.dataset, position, self._rollbacks)
            numbers = {name: values[name] for name in ("loss", "gradient_norm")}
            log_skipped(self._setup.workdir, step=step, rollbacks=self._rollbacks, images=images, **numbers)
            cause = f"step {step} had no finite loss and gradient"
            terminal.warn(f"{cause}; it is not applied, its images are in skipped.jsonl")
