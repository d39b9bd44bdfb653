"""Timing functions against one another on a machine that others use, too.

The speed of a shared machine drifts by more than the differences of interest. So candidates are timed in turn, round by
round, and compared by the ratios within a round.
"""

import math
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax

Name = TypeVar("Name")


def in_turn(names: Iterable[Name], rounds: int) -> Iterator[Name]:
    """Yields every name once a round, in an order drawn again each round: no name always follows the same one."""
    each, draw = list(names), random.Random(0)
    for _ in range(rounds):
        yield from draw.sample(each, len(each))


def calls_lasting(function: Callable[[], Any], seconds: float) -> int:
    """How many calls of a function last about `seconds`, at least 1; calls it twice, so that it is warm afterwards.

    Args:
      function: without arguments; the JAX arrays that it returns are waited for.
      seconds: 0 or more.
    """
    jax.block_until_ready(function())
    start = time.perf_counter()
    jax.block_until_ready(function())
    return max(1, math.ceil(seconds / (time.perf_counter() - start)))


class Estimate(NamedTuple):
    """The median of a share or ratio, and half the width of its 95% interval; prints as percent."""

    value: float
    margin: float

    def __str__(self) -> str:
        digits = 2 if self.margin < 0.005 else 1
        return f"{self.value:.{digits}%} ± {self.margin:.{digits}%}"


def median_estimate(values: Iterable[float]) -> Estimate:
    """The median of `values`, with an interval that holds the true one at least 95 times in 100 for any distribution.

    The interval is the sign test's: from the k-th smallest value to the k-th largest, where more than 39 in 40 draws of
    one fair coin a value show k heads or more. The margin is the distance to the farther end; NaN for fewer than six
    values.
    """
    ordered = sorted(values)
    count, median = len(ordered), statistics.median(ordered)
    place, chance = 0, 0.5**count  # the chance of at most `place` heads
    while chance <= 0.025:
        place += 1
        chance += math.comb(count, place) * 0.5**count
    if not place:
        return Estimate(median, math.nan)
    return Estimate(median, max(median - ordered[place - 1], ordered[count - place] - median))


def machine() -> str:
    """One line on where measurements come from: processor, cores, devices, Python and JAX versions."""
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        model = named[0] if named else model
    devices, cores = jax.devices(), len(os.sched_getaffinity(0))
    return (
        f"{model}, {cores} core{'s' * (cores > 1)}; {len(devices)} JAX device(s): {devices[0].device_kind}; "
        f"Python {platform.python_version()}, jax {jax.__version__}"
    )
