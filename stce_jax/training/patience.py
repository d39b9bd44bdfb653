"""Early stopping: a run ends once so many evaluations in a row were no better than the best before them."""

from collections.abc import Iterable, Mapping
from typing import Any

from stce_jax.errors import check_choice, check_whole
from stce_jax.workdir.score import score

METRICS = ("score", "loss")  # those that may be watched; the score: see `workdir.score`


class Patience:
    """The evaluations since the best one.

    Args:
      limit: how many end the run; 0: none do.
      metric: which number of an evaluation counts, one of `METRICS`; more "score" is better, and less "loss".
      state: of an earlier one, to continue from; None, or that of another metric: a new one.
    """

    def __init__(self, limit: int, metric: str, state: Mapping[str, Any] | None = None) -> None:
        self._limit, self._metric = limit, metric
        self._state: dict[str, Any] = {"metric": metric, "best": None, "epoch": 0.0, "waited": 0}
        if state and state["metric"] == metric:
            self._state |= state

    def state(self) -> dict[str, Any]:
        """All that it remembers, JSON-able: "metric", its "best" value and that "epoch", evaluations "waited" since."""
        return dict(self._state)

    def add(self, epoch: float, metrics: Mapping[str, Any]) -> None:
        """Takes the evaluation after so many epochs; a value of None is no better than any."""
        value, best = score(metrics) if self._metric == "score" else metrics["loss"], self._state["best"]
        if value is not None and (best is None or (value < best if self._metric == "loss" else value > best)):
            self._state |= {"best": value, "epoch": epoch, "waited": 0}
        else:
            self._state["waited"] += 1

    @property
    def ran_out(self) -> bool:
        """Whether the run ends."""
        return 0 < self._limit <= self._state["waited"]

    def reason(self) -> str:
        """Why it ends, in words."""
        best, epoch, waited = (self._state[name] for name in ("best", "epoch", "waited"))
        shown = "none" if best is None else f"{best:.4f}" if self._metric == "loss" else f"{best:.2%}"
        better = "lower loss" if self._metric == "loss" else "better score"
        return f"no {better} in {waited} evaluations than {shown} at epoch {epoch:.2f}"


def ran_out(config: Any, evaluations: Iterable[Mapping[str, Any]]) -> bool:
    """Whether these evaluations, lines of a run's metrics, end a run of that config early."""
    patience = Patience(config.patience, config.patience_metric)
    for line in evaluations:
        patience.add(line["epoch"], line)
    return patience.ran_out


def check_options(*, patience: Any, patience_metric: Any) -> None:
    """Raises ConfigError if `config.patience` or `config.patience_metric` cannot work."""
    check_whole("config.patience", patience, 0, 1_000_000)
    check_choice("config.patience_metric", patience_metric, METRICS)
