"""What the training loop works with: a run's parts, the state that it starts from, and how it ends early."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from stce_jax.data.views import Views
from stce_jax.processes.stopping import StopSignals
from stce_jax.processes.watch import Watch
from stce_jax.training.pace import Pace
from stce_jax.training.phases import Phase, Phases
from stce_jax.training.state import TrainState
from stce_jax.training.stepping import Stepping
from stce_jax.training.timetable import Timetable
from stce_jax.workdir.checkpoint_writer import CheckpointWriter


@dataclasses.dataclass(frozen=True)
class Course:
    """What of a run follows from its epochs.

    Attributes:
      phases: the training step of each epoch.
      work: of so many steps, for the time left, see `TrainProgress`.
      mixed_steps: how many steps mix their batches; None: all, or none.
    """

    timetable: Timetable
    stepping: Stepping
    phases: Phases
    work: Callable[[int], float] | None
    mixed_steps: int | None

    def phase_after(self, step: int) -> Phase:
        """How the step after so many is made."""
        return self.phases.at_epoch(self.timetable.epoch_after(step), step)


@dataclasses.dataclass(frozen=True)
class Setup:
    """What stays the same from the first to the last step.

    Attributes:
      key: of the run's draws, on the devices.
      check_claim: raises if the workdir belongs to another job by now.
      meta: what each checkpoint's meta.json holds of the run.
      pace: of a run with so many minutes; None: it has its epochs, however long they take.
    """

    config: Any
    workdir: str | Path
    dataset: Any
    mesh: Mesh
    course: Course
    key: jax.Array
    eval_step: Any
    val_views: Views
    checkpoints: CheckpointWriter
    stop: StopSignals
    watch: Watch
    check_claim: Callable[[], None]
    meta: dict[str, Any]
    pace: Pace | None = None


@dataclasses.dataclass(frozen=True)
class StartingPoint:
    """A state to train from, new or restored.

    Attributes:
      step: of the state.
      state: gives it, once, with the step compiled: the program that makes a new one compiles meanwhile.
      metrics: of the state's evaluation; None if it has not taken place.
      rollbacks: how often the run has gone back after diverging, which decides the order of images.
      guard: state of the divergence guard; None for a new one.
      patience: state of the `Patience`; None for a new one.
    """

    step: int
    state: Callable[[], TrainState]
    metrics: dict[str, float] | None = None
    rollbacks: int = 0
    guard: dict[str, Any] | None = None
    patience: dict[str, Any] | None = None


class RunDivergedError(Exception):
    """The run must go back to a checkpoint."""


class RunReplannedError(Exception):
    """The run must go on by another config, from the checkpoint that it has just made.

    Attributes:
      config: see `Pace.corrected`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(f"{config.epochs:g} epochs")
        self.config = config
