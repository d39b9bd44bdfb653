"""Timing functions against one another on a machine that does other things, too.

The clock of a shared machine drifts by more than the differences of interest. So what is to be compared is timed in
turn, round by round, and compared by the ratios within a round.
"""

import math
import os
import platform
import random
import statistics
import time
from typing import NamedTuple

import jax


def in_turn(names, rounds):
    """Yields every name once a round, in an order drawn anew each round, so that none always follows the same one."""
    names, draw = list(names), random.Random(0)
    for _ in range(rounds):
        yield from draw.sample(names, len(names))


def calls_lasting(function, seconds):
    """How many calls of a function last about so long, at least 1; calls it twice, so that it is warm afterwards.

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

    def __str__(self):
        digits = 2 if self.margin < 0.005 else 1
        return f"{self.value:.{digits}%} ± {self.margin:.{digits}%}"


def median_estimate(values):
    """The median of `values`, with the interval of a notched box plot: 1.57 interquartile ranges / sqrt(count)."""
    values = list(values)
    if len(values) < 2:
        return Estimate(statistics.median(values), math.nan)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Estimate(median, 1.57 * (high - low) / math.sqrt(len(values)))


def machine():
    """One line on where numbers come from: processor, cores, devices, Python and JAX versions."""
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        model = named[0] if named else model
    devices = jax.devices()
    return (
        f"{model}, {os.cpu_count()} cores; {len(devices)} JAX device(s): {devices[0].device_kind}; "
        f"Python {platform.python_version()}, jax {jax.__version__}"
    )
