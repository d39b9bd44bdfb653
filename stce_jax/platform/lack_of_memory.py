"""What to say where a device or the host had no memory for what was computed."""

import argparse
import contextlib
import re
from collections.abc import Iterator

from stce_jax.errors import ConfigError

IN_TRAINING = "a smaller config.batch_size needs less, or config.accumulate, or the model's remat and dtype=bfloat16"
BY_BATCHES = "a smaller --batch_size needs less"
OTHERWISE = "smaller images or batches need less"


@contextlib.contextmanager
def named(arguments: argparse.Namespace) -> Iterator[None]:
    """Makes an error by which memory was refused a ConfigError, which says how much it was and what needs less."""
    try:
        yield
    except Exception as error:
        # JAX has no class of errors for it, but a status that begins the message.
        if not isinstance(error, MemoryError) and not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        found = re.search(r"(\d+) bytes", str(error))
        size = f": no {int(found[1]) / 1e9:,.1f} GB in one piece" if found else ""
        remedy = BY_BATCHES if hasattr(arguments, "batch_size") else OTHERWISE
        raise ConfigError(f"out of memory{size}; {IN_TRAINING if arguments.takes_overrides else remedy}") from error
