"""Whether a run that was planned for so many minutes keeps to them, and the epochs that bring it back if it does not.

A machine may be faster or slower than while the plan was made, for hours or for a minute: what a rehearsal of seconds
has timed is off by a tenth on a shared one. So a run compares, evaluation by evaluation.
"""

from collections.abc import Callable
from typing import Any

from stce_jax.training.plan import SLACK, Costs, Plan, apply, distance, parts
from stce_jax.training.sizes import cost_until

# Shares of the minutes: a run that would end earlier, or later, than it was planned to gets other epochs.
EARLY, LATE = 0.05, 0.03
LEAST = 0.2  # share of the minutes that must be left, for another plan pays with compiling anew
SMALLEST = 0.01  # change of the epochs that is worth it


class Pace:
    """How a planned run gets on.

    Args:
      minutes: that it was planned for.
      costs: what it was planned by; see `Costs`.
      steps_per_epoch: may be a fraction.
      began: the clock when the run began.
      clock: seconds.
    """

    def __init__(
        self, minutes: float, costs: Costs, *, steps_per_epoch: float, began: float, clock: Callable[[], float]
    ) -> None:
        self._whole, self._costs, self._per_epoch, self._clock = 60.0 * minutes, costs, steps_per_epoch, clock
        self._end = began + (1.0 - SLACK) * self._whole
        self._since: tuple[float, float] | None = None  # (epoch, clock) from which on the pace is measured

    def corrected(self, config: Any, epoch: float) -> Any | None:
        """The config with the epochs that end the run in time; None if it keeps to its plan, or little is left of it.

        Args:
          config: of the run, see `plan.apply`.
          epoch: after which the run has evaluated and saved, just now.
        """
        now = self._clock()
        if self._since is None:
            if epoch >= 1:  # the first epoch decodes images, and compiles
                self._since = epoch, now
            return None
        before, then = self._since
        factor = (now - then) / self._seconds(config, config.epochs, before, epoch)

        def end(epochs: float) -> float:
            return now + factor * self._seconds(config, epochs, epoch, epochs) + self._costs.after

        late = (end(config.epochs) - self._end) / self._whole
        if -EARLY <= late <= LATE or self._end - now < LEAST * self._whole:
            return None
        restart = self._costs.compiling + factor * self._costs.first_epoch  # images are decoded anew, too
        least, most = epoch + 1.0 / self._per_epoch, 10.0 * config.epochs
        for _ in range(50):
            middle = (least + most) / 2
            in_time = end(middle) + restart <= self._end
            least, most = (middle, most) if in_time else (least, middle)
        epochs = float(f"{least:.4g}")
        if abs(epochs / config.epochs - 1.0) < SMALLEST:
            return None
        self._since = None  # measured anew, once the step is compiled again
        eval_every = distance(epochs, parts(epochs, config.eval_every))
        return apply(Plan(epochs, eval_every, end(epochs)), config)

    def _seconds(self, config: Any, epochs: float, start: float, end: float) -> float:
        """Planned seconds from one epoch to another of a run of so many epochs."""
        steps = self._costs.steps  # of the sizes, which have equal shares of the epochs
        starts = [epochs * place / len(steps) for place in range(len(steps))]
        training = self._per_epoch * (cost_until(end, starts, steps) - cost_until(start, starts, steps))
        return training + self._costs.evaluation * (end - start) / config.eval_every
