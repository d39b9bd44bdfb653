"""Whether a run has diverged: steps that could not be applied, and losses that jump."""

import math
import statistics

from stce_jax.errors import check_range

REMEMBERED = 100  # losses whose median a spike is measured by


class DivergenceGuard:
    """Looks at the steps of a run one after the other.

    Args:
      max_skipped: so many steps in a row that were not applied are a divergence, 1 or more.
      loss_spike: so is a loss so many times the median of the last 100; 0: never.
      memory: what `memory` of an earlier guard gave, to go on where it was.

    Attributes:
      skipped_in_all: steps of the run that were not applied.
    """

    def __init__(self, *, max_skipped, loss_spike, memory=None):
        self._max_skipped, self._loss_spike = max_skipped, loss_spike
        memory = memory or {"losses": [], "skipped": 0, "skipped_in_all": 0}
        self._losses, self._skipped = list(memory["losses"]), memory["skipped"]
        self.skipped_in_all = memory["skipped_in_all"]

    def memory(self):
        """JSON-able dict of all that it knows."""
        return {"losses": list(self._losses), "skipped": self._skipped, "skipped_in_all": self.skipped_in_all}

    def see(self, loss, skipped):
        """What is wrong after a step of that loss, in a few words; "" if nothing is.

        Args:
          loss: float; any, if the step was skipped.
          skipped: whether the step was not applied.
        """
        if skipped:
            self._skipped += 1
            self.skipped_in_all += 1
            if self._skipped >= self._max_skipped:
                return f"{self._skipped} steps in a row had no finite loss and gradient"
            return ""
        self._skipped = 0
        if self._loss_spike and len(self._losses) == REMEMBERED:
            median = statistics.median(self._losses)
            if not loss <= self._loss_spike * median:
                return f"the loss is {loss:.4g}, the median of the last {REMEMBERED} was {median:.4g}"
        if math.isfinite(loss):
            self._losses = [*self._losses, loss][-REMEMBERED:]
        return ""


def check_options(*, max_skipped: int, loss_spike: float, max_rollbacks: int) -> None:
    """Raises ConfigError if the options of `config.divergence` cannot work."""
    check_range("config.divergence.max_skipped", max_skipped, 1)
    check_range("config.divergence.loss_spike", loss_spike, 0)
    check_range("config.divergence.max_rollbacks", max_rollbacks, 0)
