"""What `stce prepare` prints while it runs."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from stce_jax.platform import terminal

_EVERY = 10  # seconds between two lines where there is no terminal


def size_text(size: float) -> str:
    """A number of bytes for people."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


class ImageProgress:
    """Number of images done, images a second and the time left: a live line on a terminal, plain lines elsewhere.

    Args:
      verb: what is done to the images: "preparing".
      total: number of images, above 0.
    """

    def __init__(self, verb: str, total: int) -> None:
        console = Console(file=sys.stdout, soft_wrap=True, highlight=False)
        self._output, self._live = sys.stdout, console.is_terminal and console.is_interactive
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._live,
        )
        self._verb, self._total = verb, total
        self._task = self._bar.add_task(verb, total=total, text="")
        self._start = self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, done: int, total: int | None = None, *, bad: int = 0) -> None:
        """Shows that `done` images are done, `bad` of them unusable."""
        now = time.monotonic()
        rate = done / max(now - self._start, 1e-9)
        text = f"{rate:,.0f} images/s" + (f"  {bad:,} bad" if bad else "")
        self._bar.update(self._task, completed=done, total=total, text=text)
        if not self._live and (now - self._last_line >= _EVERY or done == (total or self._total)):
            self._last_line = now
            minutes, seconds = divmod(round((self._total - done) / rate), 60)
            left = f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} left"
            terminal.say(f"{self._verb} {done:,} of {self._total:,} images  {text}  {left}", file=self._output)
