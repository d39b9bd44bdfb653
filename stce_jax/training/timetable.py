"""When things happen in a run, and where in the stream of training images each step is.

Steps are counted from the run's first to its last. Images and epochs decide what a step is: a run that resumes with
another batch size, or another number of epochs, continues with the next image of the stream.
"""

import dataclasses
import math

from stce_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a run took up its present timetable: after `step` steps, which had taken `images` of the stream."""

    step: int = 0
    images: int = 0


@dataclasses.dataclass(frozen=True)
class Timetable:
    """When things happen, in steps.

    Attributes:
      images: of one pass over the training images.
      batch_size: images of every step after the origin.
      epochs: passes of the run, in all.
      eval_every: epochs between two evaluations; each takes place at the nearest step, and no two at one.
      origin: the run's start, or where its timetable was changed last.
    """

    images: int
    batch_size: int
    epochs: float
    eval_every: float
    origin: Origin = Origin()

    @property
    def epoch(self) -> float:
        """Steps of one pass over the training images, a fraction if the batch does not divide them."""
        return self.images / self.batch_size

    @property
    def offset(self) -> int:
        """Images by which step x batch is ahead of the position in the stream; 0 if the batch was always the same."""
        return self.origin.step * self.batch_size - self.origin.images

    @property
    def shift(self) -> float:
        """The offset in steps: the schedule and evaluations, which are fixed in epochs, come so many steps later."""
        return self.offset / self.batch_size

    @property
    def total(self) -> int:
        """Steps of the run; as near to its epochs as whole batches come."""
        return round(self.epochs * self.epoch + self.shift)

    def position(self, step: int) -> int:
        """Images of the stream that the first `step` steps take; at or after the origin."""
        return step * self.batch_size - self.offset

    def epoch_after(self, step: int) -> float:
        """Passes over the training images after `step` steps; at or after the origin."""
        return (step - self.shift) / self.epoch

    def first_step(self, epoch: float) -> int:
        """The fewest steps after which `epoch` passes are over, up to rounding; what begins then begins with the next.

        At or after the origin; an epoch before it gives what the present batch would have made.
        """
        return math.ceil(round(epoch * self.epoch + self.shift, 6))

    def evaluates(self, step: int) -> bool:
        """Whether the state after `step` steps is evaluated and saved."""
        every = max(1.0, self.eval_every * self.epoch)
        nearest = max(1, round((step - self.shift) / every))
        return every == 1 or step == self.total or step == max(1, round(nearest * every + self.shift))

    def saves(self, step: int) -> bool:
        """Whether the state after `step` steps is one that every run with this timetable has.

        What was saved up to the origin is, whenever it was: the run had another timetable then.
        """
        return step <= self.origin.step or self.evaluates(step)

    def resumed(self, step: int, *, batch_size: int, epochs: float, eval_every: float) -> "Timetable":
        """The timetable by which another config continues from a step of this one.

        The step keeps its number and its position in the stream of images; what follows is the config's.

        Raises:
          ConfigError: the step is beyond the config's epochs.
        """
        if dataclasses.replace(self, epochs=epochs).total < step:
            raise ConfigError(
                f"the run is at epoch {self.epoch_after(step):.2f} already, beyond config.epochs {epochs:g}; give more "
                "--config.epochs, or another --workdir"
            )
        if (batch_size, epochs, eval_every) == (self.batch_size, self.epochs, self.eval_every):
            return self
        return Timetable(self.images, batch_size, epochs, eval_every, Origin(step, self.position(step)))


def is_last(step: int, epoch: float, epochs: float, steps_per_epoch: float | None = None) -> bool:
    """Whether a step, after which `epoch` epochs are over, is the last of a run of `epochs`.

    Args:
      steps_per_epoch: of the batch size at that step; None: it was always the same.
    """
    rate = steps_per_epoch or step / epoch
    return step >= round(round(step + (epochs - epoch) * rate, 6))  # the product is inexact
