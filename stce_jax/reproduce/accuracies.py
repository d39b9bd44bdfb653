"""The tables of accuracies and of differences that the reports of tables have in common."""

import math
from collections.abc import Sequence

from stce_jax.analysis.intervals import Interval
from stce_jax.reproduce.costs import NONE
from stce_jax.reproduce.documents import Block, heading, table
from stce_jax.reproduce.results import Difference, Result, differences


def accuracy_blocks(results: Sequence[Result]) -> list[Block]:
    """Every row's accuracy, then every difference that is asked for, on the same seeds and images."""
    blocks = [table([_accuracy(result) for result in results])]
    if pairs := differences(results):
        blocks += [heading("Differences on the same seeds and images, in points", level=3)]
        blocks += [table([_difference(pair) for pair in pairs])]
    return blocks


def _accuracy(result: Result) -> dict[str, str]:
    paper, ours = result.row.paper.get("top1"), result.interval()
    return {
        "row": result.row.label,
        "paper, top-1 %": NONE if paper is None else f"{paper:.2f}",
        "ours, top-1 %": percent(ours) if ours else NONE,
        "by the images": _range(result.over_images()) if ours else NONE,
        "each seed": ", ".join(f"{100 * top1:.2f}" for top1 in result.top1) or NONE,
        "best epoch, chosen on the test images": ", ".join(f"{100 * top1:.2f}" for top1 in result.best) or NONE,
        "runs": f"{len(result.seeds)} of {len(result.seeds) + len(result.unfinished)}",
    }


def _difference(pair: Difference) -> dict[str, str]:
    p_values = "; ".join(f"{first}/{second}, p {_p(p_value)}" for first, second, p_value in pair.mcnemar)
    return {
        "rows": f"{pair.first.label} less {pair.second.label}",
        "paper": NONE if pair.paper is None else f"{pair.paper:+.2f}",
        "ours, over seeds": percent(pair.over_seeds, "+"),
        "over images": percent(pair.over_images, "+"),
        "right alone (first/second), p": p_values,
        "verdict": _verdict(pair),
    }


def _verdict(pair: Difference) -> str:
    """What both intervals together allow to say of "first less second"; of one seed there is but one."""
    words = {1: "the first is higher", -1: "the first is lower", 0: "undecided"}
    by_images = _sign(pair.over_images)
    if len(pair.mcnemar) == 1:
        return f"{words[by_images]} by the images of one seed; of other seeds it says nothing"
    return words[by_images if _sign(pair.over_seeds) == by_images else 0]


def _sign(interval: Interval) -> int:
    """1 or -1 where an interval lies above or below 0; 0 where it contains 0, or there is none."""
    return int(interval.low > 0) - int(interval.high < 0)


def percent(interval: Interval, sign: str = "") -> str:
    """An `Interval` of fractions in percent or points."""
    mean, low, high = (f"{100 * value:{sign}.2f}" for value in interval)
    return mean if math.isnan(interval.low) else f"{mean} [{low}, {high}]"


def _range(interval: Interval) -> str:
    return f"[{100 * interval.low:.2f}, {100 * interval.high:.2f}]"


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-4 else "< 0.0001"
