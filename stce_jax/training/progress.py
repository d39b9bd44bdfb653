"""What a run prints while it trains: a live line on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from stce_jax.platform import terminal
from stce_jax.workdir.score import said


def show_opening(rows: Mapping[str, str]) -> None:
    """Prints what a run is: a table on a terminal, lines "name: value" elsewhere."""
    console = _OwnConsole(file=sys.stdout)
    if not _is_live(console):
        terminal.say(*(f"{name}: {value}" for name, value in rows.items()))
        return
    table = Table(show_header=False)
    for name, value in rows.items():
        table.add_row(Text(name, style="bold"), Text(terminal.printable(value), overflow="fold"))
    console.print(table)


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
        self._console = _OwnConsole(file=sys.stdout, soft_wrap=True, highlight=False, quiet=quiet)
        self._live = _is_live(self._console)
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]:.1f}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            _Said(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._live,
            speed_estimate_period=3600,  # seconds; must span two lines, or no time left can be estimated
        )
        self._work: Callable[[int], float] = work or float
        total: Any = self._work(total_steps)
        done: Any = self._work(step)  # may be fractions, whatever rich declares
        self._task = self._bar.add_task("", total=total, completed=done, epoch=0.0, text="starting", since=None)
        self._total = total_steps

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def print(self, text: str) -> None:
        """Prints a line that stays."""
        self._console.print(terminal.printable(text), markup=False)

    @contextlib.contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        """Around a compilation: a clock on a terminal, a line elsewhere; a line that stays says how long it took."""
        start, before = time.monotonic(), self._bar.tasks[0].fields["text"]
        self._bar.update(self._task, text=f"compiling {what}", since=start)
        if not self._live:
            self.print(f"compiling {what}")
        yield
        self._bar.update(self._task, text=before, since=None)
        self.print(f"compiled {what} in {time.monotonic() - start:.1f} s")

    def first(self, step: int, epoch: float, metrics: dict[str, Any]) -> None:
        """Reports the first step, whose speed is that of a compilation and no speed."""
        self._train(step, epoch, _scores(metrics))

    def train(self, step: int, epoch: float, metrics: dict[str, Any]) -> None:
        """Reports a window of training steps."""
        speed = f"{metrics['images_per_second']:,.0f} images/s  waiting {100 * metrics['data_wait']:.0f}%"
        self._train(step, epoch, f"{_scores(metrics)}  {speed}")

    def _train(self, step: int, epoch: float, text: str) -> None:
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


class _OwnConsole(Console):
    """A console that leaves the cursor where it is seen: a signal may end the process before it is shown again."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


class _Said(ProgressColumn):
    """The text of a task, with the seconds since something began that takes long."""

    def render(self, task: Task) -> Text:
        text, since = task.fields["text"], task.fields["since"]
        return Text(text if since is None else f"{text}, {time.monotonic() - since:.0f} s")


def _is_live(console: Console) -> bool:
    return console.is_terminal and console.is_interactive  # a dumb terminal is not


def _scores(metrics: dict[str, Any]) -> str:
    return "  ".join(filter(None, (f"loss {metrics['loss']:.3f}", said(metrics, ("top1",), digits=1))))
