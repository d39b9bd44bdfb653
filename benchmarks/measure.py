"""What the benchmarks share: timing several functions against each other, and reporting it.

Functions are timed in turn, see `stce_jax.analysis.timing.turns`, in wall and in process CPU seconds.
"""

import time
from typing import NamedTuple

import jax

from stce_jax.analysis.timing.turns import Estimate, calls_lasting, in_turn, machine, median_estimate

__all__ = ["Estimate", "Seconds", "interleave", "machine", "markdown_table", "median_estimate"]


class Seconds(NamedTuple):
    """Seconds a call, one entry a round: by the wall clock, and as CPU time of the whole process, all threads."""

    wall: list[float]
    cpu: list[float]


def interleave(functions, rounds, *, shortest=0.05):
    """Times functions in turn: every round calls each of them once.

    Args:
      functions: dict name -> function without arguments; JAX results are waited for. Each is called twice beforehand,
        so that compiling is not timed.
      rounds: number of rounds.
      shortest: seconds that a timing should last; quicker functions are called several times a round.

    Returns:
      dict name -> `Seconds`.
    """
    calls = {name: calls_lasting(function, shortest) for name, function in functions.items()}
    seconds = {name: Seconds([], []) for name in functions}
    for name in in_turn(functions, rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(calls[name]):
            jax.block_until_ready(functions[name]())
        seconds[name].wall.append((time.perf_counter() - wall) / calls[name])
        seconds[name].cpu.append((time.process_time() - cpu) / calls[name])
    return seconds


def markdown_table(rows):
    """A Markdown table of `rows`, dicts with the same keys: the keys are its header."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
