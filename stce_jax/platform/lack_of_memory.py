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
        said = in_words(error)
        if not said:
            raise
        remedy = BY_BATCHES if hasattr(arguments, "batch_size") else OTHERWISE
        raise ConfigError(f"{said}; {IN_TRAINING if arguments.takes_overrides else remedy}") from error


def in_words(error: Exception) -> str:
    """An error by which memory was refused, as "out of memory: no 1.5 GB in one piece"; "" for any other."""
    # JAX has no class of errors for it, but a status that begins the message.
    if not isinstance(error, MemoryError) and not str(error).startswith("RESOURCE_EXHAUSTED"):
        return ""
    found = re.search(r"(\d+) bytes", str(error))
    return "out of memory" + (f": no {int(found[1]) / 1e9:,.1f} GB in one piece" if found else "")
