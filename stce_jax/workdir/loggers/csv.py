"""A table for spreadsheets: metrics.csv in the workdir, a row a line, a column for each metric."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from stce_jax.paths import write_bytes
from stce_jax.workdir.loggers import LoggedRun

FILE_NAME = "metrics.csv"


def open_log(run: LoggedRun) -> "Csv":
    """A `Log` that begins with the run's lines so far."""
    return Csv(run)


class Csv:
    """A `Log`; see `open_log`. Numbers that are not finite leave their cell empty, as those that a line lacks."""

    def __init__(self, run: LoggedRun) -> None:
        self._path = run.directory / FILE_NAME
        self._start(run.lines)

    def write(self, line: Mapping[str, Any]) -> None:
        self._lines.append(line)
        if set(line) <= set(self._columns):
            with self._path.open("ab") as file:
                file.write(_text([line], self._columns))
        else:  # the head is another one
            self._start(self._lines)

    def rewind(self, lines: Sequence[Mapping[str, Any]], last: Mapping[str, int]) -> None:
        del last
        self._start(lines)

    def flush(self) -> None:
        """Nothing: each row is written at once."""

    def close(self, summary: Mapping[str, float] | None) -> None:
        """Nothing: the last row of an evaluation is the summary."""

    def _start(self, lines: Sequence[Mapping[str, Any]]) -> None:
        self._lines = list(lines)
        self._columns = list(dict.fromkeys(["step", "epoch", "split", *(name for line in lines for name in line)]))
        write_bytes(self._path, ",".join(self._columns).encode() + b"\r\n" + _text(self._lines, self._columns))


def _text(lines: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writerows({name: _cell(value) for name, value in line.items()} for line in lines)
    return text.getvalue().encode()


def _cell(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and not math.isfinite(value)) else value
