"""What to say where a device or the host had no memory for what was computed."""

import argparse
import re

IN_TRAINING = "a smaller config.batch_size needs less, or config.accumulate, or the model's remat and dtype=bfloat16"
BY_BATCHES = "a smaller --batch_size needs less"
OTHERWISE = "smaller images or batches need less"


def lack_of_memory(error: BaseException, arguments: argparse.Namespace) -> str:
    """One line for an error by which memory was refused: how much, and what needs less; "" for any other error.

    JAX has no class of errors for it, so it is known by the status that begins the message.
    """
    text = str(error)
    if not isinstance(error, MemoryError) and not text.startswith("RESOURCE_EXHAUSTED"):
        return ""
    found = re.search(r"(\d+) bytes", text)
    size = f": no {int(found[1]) / 1e9:,.1f} GB in one piece" if found else ""
    if arguments.takes_overrides:
        return f"out of memory{size}; {IN_TRAINING}"
    return f"out of memory{size}; {BY_BATCHES if hasattr(arguments, 'batch_size') else OTHERWISE}"
