"""What a run says to people: by one of its processes."""

from stce_jax.platform import terminal
from stce_jax.processes import peers


def say(*lines: str) -> None:
    """Prints lines on standard output, if this is the main process."""
    if peers.is_main():
        terminal.say(*lines)


def warn(text: str) -> None:
    """Prints a line on standard error, if this is the main process."""
    if peers.is_main():
        terminal.warn(text)
