"""Whether a run has diverged: steps that could not be applied, and losses that jump."""

import math
import statistics
from typing import Any

from stce_jax.errors import check_range, check_whole

REMEMBERED = 100  # losses whose median a spike is compared with


class DivergenceGuard:
    """Checks the steps of a run one after the other.

    Args:
      max_skipped: that many skipped steps in a row are a divergence, 1 or more.
      loss_spike: so is a loss above that many times the median of the last 100; 0: never.
      state: of an earlier guard, to continue from.

    Attributes:
      total_skipped: steps of the run that were not applied.
    """

    def __init__(self, *, max_skipped: int, loss_spike: float, state: dict[str, Any] | None = None) -> None:
        self._max_skipped, self._loss_spike = max_skipped, loss_spike
        state = state or {"losses": [], "skipped": 0, "skipped_in_all": 0}
        self._losses: list[float] = list(state["losses"])
        self._skipped: int = state["skipped"]
        self.total_skipped: int = state["skipped_in_all"]

    def state(self) -> dict[str, Any]:
        """All that it remembers, JSON-able."""
        return {"losses": list(self._losses), "skipped": self._skipped, "skipped_in_all": self.total_skipped}

    def check(self, loss: float, skipped: bool) -> str:
        """What is wrong after a step of that loss, in a few words; "" if nothing is.

        Args:
          loss: any value, if the step was skipped.
          skipped: whether the step was not applied.
        """
        if skipped:
            self._skipped += 1
            self.total_skipped += 1
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
    check_whole("config.divergence.max_skipped", max_skipped, 1, 1_000_000)
    check_range("config.divergence.loss_spike", loss_spike, 1, 1e30, or_zero=True)  # below 1, any loss is a spike
    check_whole("config.divergence.max_rollbacks", max_rollbacks, 0, 10_000)
