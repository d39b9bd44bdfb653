"""The number by which an evaluation is judged: top-1, or the mean average precision of images with several labels."""

from collections.abc import Iterable, Mapping
from typing import Any

NAMES = {"top1": "top-1", "top5": "top-5", "map": "mAP"}  # in the metrics -> for people; all are fractions
SCORES = ("top1", "map")


def score_name(metrics: Mapping[str, Any]) -> str | None:
    """The score's name among the metrics of an evaluation; None: they have none."""
    return next((name for name in SCORES if name in metrics), None)


def score(metrics: Mapping[str, Any]) -> float | None:
    """The score among the metrics of an evaluation; None, too, for one that was not finite."""
    return metrics.get(score_name(metrics) or "")


def score_of(lines: Iterable[Mapping[str, Any]]) -> str:
    """The name of the score that lines of metrics.jsonl have; "top1" if they have none yet."""
    return next((name for line in lines if (name := score_name(line))), "top1")


def said(metrics: Mapping[str, Any], names: Iterable[str] = NAMES, *, digits: int = 2) -> str:
    """Those of the names that metrics have, for people, each in per cent: "top-1 81.25%  top-5 99.00%"."""
    return "  ".join(f"{NAMES[name]} {100 * metrics[name]:.{digits}f}%" for name in names if name in metrics)
