"""The results of a sweep's cells: accuracies of every seed and image, curves, times."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from stce_jax.analysis.files import IN_RUN, read_predictions
from stce_jax.analysis.intervals import (
    Interval,
    bootstrap_difference,
    mcnemar,
    mean_interval,
    paired_mean_interval,
    wilson_interval,
)
from stce_jax.errors import PreemptedError
from stce_jax.reproduce.cells import Row, cell_of
from stce_jax.workdir.metric_lines import read_metrics, training_speed

NOT_FINISHED = "not finished"  # why there is no result, if nothing failed


@dataclasses.dataclass(frozen=True)
class Result:
    """A row's runs, as far as they are finished.

    Attributes:
      row: the row.
      seeds: those whose cells are finished; everything below has one entry a seed, in this order.
      top1, best: fractions, of the last epoch and of the best one, which is chosen on the test images.
      hits: whether the last epoch's top-1 is right.
      curves: lines of metrics.
      images_per_second: in training, loading included, see `training_speed`.
      seconds: that training and evaluating took, all starts together except those that were killed; None where
        `reproduce` did not do it.
      records: what `reproduce` has written about all seeds' cells, finished or not: {seed: dict}.
      unfinished: {seed: why}.
    """

    row: Row
    seeds: list[int]
    top1: list[float]
    best: list[float]
    hits: Bool[np.ndarray, "seeds images"]
    curves: list[list[dict[str, Any]]]
    images_per_second: list[float | None]
    seconds: list[float | None]
    records: dict[int, dict[str, Any]]
    unfinished: dict[int, str]

    def planned(self) -> int:
        """How many runs there are to be."""
        return len(self.seeds) + len(self.unfinished)

    def interval(self) -> Interval | None:
        """`Interval` of the top-1 over seeds, cut to what an accuracy can be; None without a finished seed."""
        if not self.top1:
            return None
        mean, low, high = mean_interval(self.top1)
        return Interval(mean, max(low, 0.0), min(high, 1.0))  # of one seed both stay nan

    def over_images(self) -> Interval:
        """`Interval` that the number of test images leaves open of one run with the mean top-1."""
        count = self.hits.shape[1]
        return wilson_interval(round(float(self.hits.mean()) * count), count)


def progress(results: Sequence[Result], deciding: str) -> str:
    """How many of a study's runs are finished, in words; `deciding` names those that decide it."""
    counts = [
        (sum(len(result.seeds) for result in own), sum(result.planned() for result in own))
        for own in ([result for result in results if result.row.decides], results)
    ]
    (done, planned), (all_done, all_planned) = counts
    return (
        f"Of the runs that decide ({deciding}), {done} of {planned} are finished; of all runs {all_done} of "
        f"{all_planned}. The same command continues."
    )


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much better one row is than another, on the same seeds and images.

    Attributes:
      first, second: the rows.
      paper: difference of the printed top-1 in points, or None.
      over_seeds: `Interval` in fractions, of the paired differences of the seeds.
      over_images: the same of resampled test images, the seeds averaged.
      mcnemar: for each seed (images that the first alone has right, the second alone, p value).
    """

    first: Row
    second: Row
    paper: float | None
    over_seeds: Interval
    over_images: Interval
    mcnemar: list[tuple[int, int, float]]


def read_result(row: Row, seeds: Sequence[int], workdir: Path) -> Result:
    """The `Result` of a row for these seeds; `workdir` is the sweep's absolute path."""
    cells = {seed: cell_of(row, seed, workdir) for seed in seeds}
    records = {seed: cell.record() for seed, cell in cells.items()}
    finished = [seed for seed, cell in cells.items() if cell.finished()]
    curves = [read_metrics(cells[seed].directory) for seed in finished]
    evaluated = [[line["top1"] or 0.0 for line in lines if line["split"] == "eval"] for lines in curves]
    predictions: list[Any] = [read_predictions(cells[seed].directory / IN_RUN) for seed in finished]
    hits = [found["hits"] for found in predictions]
    return Result(
        row=row,
        seeds=finished,
        top1=[float(of_run.mean()) for of_run in hits],
        best=[max(of_run, default=math.nan) for of_run in evaluated],
        hits=np.array(hits),
        curves=curves,
        images_per_second=[training_speed(lines) for lines in curves],
        seconds=[records[seed].get("seconds") for seed in finished],
        records={seed: record for seed, record in records.items() if record},
        unfinished={seed: _why_unfinished(records[seed]) for seed in seeds if seed not in finished},
    )


def _why_unfinished(record: dict[str, Any]) -> str:
    """A cell's error, unless it was stopped or is being tried again."""
    stopped = not record or record["exit_code"] in (0, PreemptedError.exit_code)
    return NOT_FINISHED if stopped else record["error"]


def differences(results: Sequence[Result]) -> list[Difference]:
    """[Difference, ...] of every row and each that it is compared with, as far as they share finished seeds."""
    found = []
    by_run = {result.row.run: result for result in results}
    for first in results:
        for second in (by_run[name] for name in first.row.against if name in by_run):
            shared = [seed for seed in first.seeds if seed in second.seeds]
            if shared:
                found.append(_difference(first, second, shared))
    return found


def _difference(first: Result, second: Result, seeds: Sequence[int]) -> Difference:
    own, others = ([of.top1[of.seeds.index(seed)] for seed in seeds] for of in (first, second))
    hits = [of.hits[[of.seeds.index(seed) for seed in seeds]] for of in (first, second)]
    printed: list[Any] = [of.row.paper.get("top1") for of in (first, second)]
    return Difference(
        first=first.row,
        second=second.row,
        paper=None if None in printed else printed[0] - printed[1],
        over_seeds=paired_mean_interval(own, others),
        over_images=bootstrap_difference(*hits),
        mcnemar=[mcnemar(*pair) for pair in zip(*hits, strict=True)],
    )
