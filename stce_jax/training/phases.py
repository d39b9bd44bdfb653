"""The compiled training step of each epoch: images may grow, and a token reduction keep fewer tokens, as a run goes on.

Which step an epoch has depends on the epoch alone, so that a run that resumes takes up the same.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from stce_jax.models.bodies import Body, at_epoch
from stce_jax.processes import peers as processes
from stce_jax.training.sizes import Sizes
from stce_jax.training.timetable import Timetable


def build_sizes(config: Any, timetable: Timetable) -> Sizes | None:
    """The sizes of a run's training images; None: all are of `image_size`."""
    sides = tuple(config.progressive_sizes)
    return Sizes.of(sides, timetable) if sides else None


def mixed_steps(config: Any, timetable: Timetable) -> int | None:
    """How many steps of a run mix their batches; None: all, or there is no mixing."""
    options = config.augment
    if not options.mixing_off_epochs or not (options.mixup or options.cutmix):
        return None
    return max(0, timetable.first_step(config.epochs - options.mixing_off_epochs))


class Phase(NamedTuple):
    """What stays the same for some epochs.

    Attributes:
      body: the model as it trains.
      step: its training step, see `step.make_train_step`.
      side: of its images in pixels; None: it is always the same.
    """

    body: Body
    step: Any
    side: int | None = None


class Phases:
    """The training steps of a run, each made when it is first asked for: one, unless there is a schedule.

    Args:
      model: a body.
      make: body -> its training step.
      sizes: of the images; None: they are always of the same.
    """

    def __init__(self, model: Body, make: Callable[[Body], Any], sizes: Sizes | None = None) -> None:
        self.sizes = sizes
        self._model, self._make = model, make
        self._made: list[Phase] = []  # few; the last one asked for comes first
        self._compiled: list[Phase] = []

    def at_epoch(self, epoch: float, steps: int = 0) -> Phase:
        """The phase of the step that follows `epoch` passes over the training images, which took so many steps."""
        body, side = at_epoch(self._model, epoch), self.sizes.after(steps) if self.sizes else None
        for place, phase in enumerate(self._made):
            if phase.side == side and (phase.body is body or phase.body == body):
                self._made.insert(0, self._made.pop(place))
                return phase
        self._made.insert(0, Phase(body, self._make(body), side))
        return self._made[0]

    def is_compiled(self, phase: Phase) -> bool:
        """Whether a phase's step is compiled: a call of it takes no longer than it computes."""
        return any(phase is done for done in self._compiled)

    def compile(self, phase: Phase, *arguments: Any) -> None:
        """Compiles a phase's step for these arguments, which may be shapes.

        Of several processes all must call it, for the same phases in the same order.
        """
        processes.compile_now(phase.step, *arguments)
        self._compiled.append(phase)

    def says(self, phase: Phase) -> str:
        """A phase in words, such as "48 pixels, keep rate 0.79"; "" for a run without a schedule."""
        words = [f"{phase.side} pixels"] if phase.side else []
        if phase.body is not self._model:
            rate: Any = getattr(getattr(phase.body, "reduction", None), "keep_rate", None)
            if rate is None:
                words.append("another form of the model")
            else:
                rates = rate if isinstance(rate, tuple | list) else (rate,)
                words.append(f"keep rate {', '.join(f'{rate:.3g}' for rate in rates)}")
        return ", ".join(words)
