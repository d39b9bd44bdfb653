"""The compiled training step of each epoch: a token reduction may keep fewer tokens as a run goes on.

Which step an epoch has depends on the epoch alone, so that a run that resumes takes up the same.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from stce_jax.models.bodies import Body, at_epoch


class Phase(NamedTuple):
    """What stays the same for some epochs.

    Attributes:
      body: the model as it trains.
      step: its training step, see `step.make_train_step`; its first call compiles it.
    """

    body: Body
    step: Any


class Phases:
    """The training steps of a run, each made when it is first asked for: one, unless the model has a schedule.

    Args:
      model: a body.
      make: body -> its training step.
    """

    def __init__(self, model: Body, make: Callable[[Body], Any]) -> None:
        self._model, self._make = model, make
        self._made: list[Phase] = []  # few; the last one asked for comes first

    def at_epoch(self, epoch: float) -> Phase:
        """The phase of the step that follows `epoch` passes over the training images."""
        body = at_epoch(self._model, epoch)
        for place, phase in enumerate(self._made):
            if phase.body is body or phase.body == body:
                self._made.insert(0, self._made.pop(place))
                return phase
        self._made.insert(0, Phase(body, self._make(body)))
        return self._made[0]

    def says(self, phase: Phase) -> str:
        """A phase in words, such as "keep rate 0.79"; "" for a model without a schedule."""
        if phase.body is self._model:
            return ""
        rate: Any = getattr(getattr(phase.body, "reduction", None), "keep_rate", None)
        if rate is None:
            return "another form of the model"
        rates = rate if isinstance(rate, tuple | list) else (rate,)
        return f"keep rate {', '.join(f'{rate:.3g}' for rate in rates)}"
