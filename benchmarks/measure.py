"""What the benchmarks share: timing several functions against each other, and reporting it.

On a shared machine the clock drifts by more than the differences of interest. So functions are timed in turn, round
by round, in wall and in process CPU seconds, and compared by the ratios within a round.
"""

import math
import os
import platform
import random
import statistics
import time
from typing import NamedTuple

import jax


class Seconds(NamedTuple):
    """Seconds a call, one entry a round: by the wall clock, and as CPU time of the whole process, all threads."""

    wall: list[float]
    cpu: list[float]


def interleave(functions, rounds, *, shortest=0.05):
    """Times functions in turn: every round calls each of them once, in an order drawn anew, so that none always follows
    the same one.

    Args:
      functions: dict name -> function without arguments; JAX results are waited for. Each is called twice beforehand,
        so that compiling is not timed.
      rounds: number of rounds.
      shortest: seconds that a timing should last; quicker functions are called several times a round.

    Returns:
      dict name -> `Seconds`.
    """
    calls = {}
    for name, function in functions.items():
        jax.block_until_ready(function())
        start = time.perf_counter()
        jax.block_until_ready(function())
        calls[name] = max(1, math.ceil(shortest / (time.perf_counter() - start)))
    seconds = {name: Seconds([], []) for name in functions}
    draw = random.Random(0)
    for _ in range(rounds):
        for name in draw.sample(list(functions), len(functions)):
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(calls[name]):
                jax.block_until_ready(functions[name]())
            seconds[name].wall.append((time.perf_counter() - wall) / calls[name])
            seconds[name].cpu.append((time.process_time() - cpu) / calls[name])
    return seconds


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
    """One line on where the numbers come from: processor, cores, devices, Python and JAX versions."""
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


def markdown_table(rows):
    """A Markdown table of `rows`, dicts with the same keys: the keys are its header."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
