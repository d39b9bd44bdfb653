"""What a run prints while it trains: a live line on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Callable
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from stce_jax.platform import terminal
from stce_jax.workdir.score import said


class TrainProgress:
    """Shows epoch, loss, top-1, images/s and the time left; a context manager.

    Args:
      total_steps: steps of the whole run.
      step: the step it starts from.
      quiet: print nothing, as one of several processes.
      work: steps -> work of so many, where later steps take longer; None: all take the same.
    """

    def __init__(
        self, total_steps: int, step: int, *, quiet: bool = False, work: Callable[[int], float] | None = None
    ) -> None:
        self._console = Console(file=sys.stdout, soft_wrap=True, highlight=False, quiet=quiet)
        self._live = self._console.is_terminal and self._console.is_interactive  # a dumb terminal is not
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]:.1f}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._live,
            speed_estimate_period=3600,  # seconds; must span two lines, or no time left can be estimated
        )
        self._work: Callable[[int], float] = work or float
        total: Any = self._work(total_steps)
        done: Any = self._work(step)  # may be fractions, whatever rich declares
        self._task = self._bar.add_task("", total=total, completed=done, epoch=0.0, text="compiling")
        self._total = total_steps

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def print(self, text: str) -> None:
        """Prints a line that stays."""
        self._console.print(terminal.printable(text), markup=False)

    def train(self, step: int, epoch: float, metrics: dict[str, Any]) -> None:
        """Reports a window of training steps."""
        parts = (f"loss {metrics['loss']:.3f}", said(metrics, ("top1",), digits=1))
        speed = f"{metrics['images_per_second']:,.0f} images/s  waiting {100 * metrics['data_wait']:.0f}%"
        text = "  ".join(filter(None, (*parts, speed)))
        self._bar.update(self._task, completed=self._work(step), epoch=epoch, text=text)
        if not self._live:
            self.print(f"step {step}/{self._total}  epoch {epoch:.2f}  train  {text}{self._time_left()}")

    def evaluation(self, step: int, epoch: float, metrics: dict[str, Any]) -> None:
        """Reports an evaluation."""
        text = f"eval   loss {metrics['loss']:.3f}  {said(metrics)}"
        self.print(f"step {step}/{self._total}  epoch {epoch:.2f}  {text}")

    def _time_left(self) -> str:
        seconds = self._bar.tasks[0].time_remaining
        if seconds is None:
            return ""
        minutes, seconds = divmod(int(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"  {hours}:{minutes:02d}:{seconds:02d} left" if hours else f"  {minutes}:{seconds:02d} left"
