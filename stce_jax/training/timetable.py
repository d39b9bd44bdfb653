"""When things happen in a run."""

import dataclasses


def is_last(step: int, epoch: float, epochs: float) -> bool:
    """Whether a step, after which `epoch` epochs are over, is the last of a run of `epochs`."""
    return step >= round(round(epochs * step / epoch, 6))  # the quotient is inexact


@dataclasses.dataclass(frozen=True)
class Timetable:
    """When things happen, in steps.

    Attributes:
      epoch: steps of one pass over the training images, a fraction if the batch does not divide them.
      total: steps of the run.
      eval_every: steps between two evaluations, possibly a fraction: each takes place at the nearest step.
    """

    epoch: float
    total: int
    eval_every: float

    def evaluates(self, step: int) -> bool:
        """Whether the state after `step` updates is evaluated and saved."""
        nearest = max(1, round(step / self.eval_every))
        return step == self.total or step == max(1, round(nearest * self.eval_every))
