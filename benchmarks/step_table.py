"""A table with a row for each model, of what two forms of its training step take."""

import sys

import jax
from measure import machine, markdown_table
from training import model_and_batch

from stce_jax.platform import freed_memory


def step_table(models, batch, rounds, measured):
    """The table as text, with the machine above it.

    Args:
      models: names.
      batch: images of a step.
      rounds: timings of each step.
      measured: (name, batch, rounds) -> a row, {header: cell}.
    """
    freed_memory.keep()
    freed_memory.configure_jax()
    rows = []
    for name in models:
        rows.append(measured(name, batch, rounds))
        print(rows[-1], file=sys.stderr, flush=True)
        model_and_batch.cache_clear()
        jax.clear_caches()
    return f"{machine()}; float32, 224 pixels, {batch} images\n\n{markdown_table(rows)}"
