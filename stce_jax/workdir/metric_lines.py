"""Reading `metrics.jsonl`: which of its lines are whole, and a word about those that are not.

A line may be cut short by a crash, or damaged by a disk. It is never dropped without a word, and never taken for a
measurement: whoever reads the lines can rely on what `is_whole` says.
"""

import functools
import json
import math
import os
import statistics
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from stce_jax.errors import ConfigError
from stce_jax.paths import first_line, is_remote, open_path
from stce_jax.platform import terminal
from stce_jax.workdir.score import score_name

FILE_NAME = "metrics.jsonl"
CHUNK = 10_000  # lines that are decoded at once
SPLITS = ("train", "eval")
# Earlier versions wrote NaN and Infinity, for which JSON has no word. To make a decoder takes as long as a line does.
_DECODER = json.JSONDecoder(parse_constant=lambda word: None)


class Line(NamedTuple):
    """A line of the file.

    Attributes:
      number: from 1.
      raw: its bytes, without the end of the line.
      values: what it holds, {} if it is damaged.
    """

    number: int
    raw: bytes
    values: dict[str, Any]


def read_metrics(workdir: str | PurePath) -> list[dict[str, Any]]:
    """The lines of a workdir's metrics.jsonl as dicts; those that are damaged are left out, and said once.

    Each has "step" (1 or more), "epoch" (above 0), "split" ("train" or "eval"), "loss", and a score, see `score`:
    "top1", or "map", which training has not. Every number but the first two may be None: it was not finite.

    Raises:
      ConfigError: the file is there and cannot be read.
    """
    whole, damaged = sort_out(read_bytes(workdir))
    if damaged:
        _say_once(f"{open_path(workdir) / FILE_NAME}: {describe(damaged)} left out")
    return [line.values for line in whole]


def read_bytes(workdir: str | PurePath, name: str = FILE_NAME) -> bytes:
    """A file of a workdir as it is, b"" if there is none; raises ConfigError if it cannot be read."""
    path = open_path(workdir) / name
    try:
        if not path.exists():
            return b""
        if not is_remote(path) and not os.path.isfile(path):  # a pipe would be waited for
            raise OSError("it is no file")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {first_line(error)}; repair that, or move it out of the way") from error


def sort_out(data: bytes) -> tuple[list[Line], list[Line]]:
    """(whole lines, damaged ones) of a file's bytes; empty lines are neither."""
    whole: list[Line] = []
    damaged: list[Line] = []
    for line in parse(data):
        (whole if is_whole(line.values) else damaged).append(line)
    return whole, damaged


def parse(data: bytes) -> Iterator[Line]:
    """The lines of JSON objects in a file's bytes; those that are no objects have no values."""
    lines = [(number, raw) for number, raw in enumerate(data.split(b"\n"), start=1) if raw.strip()]
    for start in range(0, len(lines), CHUNK):
        chunk = lines[start : start + CHUNK]
        for (number, raw), values in zip(chunk, _objects([raw for _, raw in chunk]), strict=True):
            yield Line(number, raw, values)


def _objects(lines: Sequence[bytes]) -> list[dict[str, Any]]:
    """What each line holds, {} if that is no object.

    At once if all is well, which takes a third of the time. Lines of one brace each way hold one object at most, so
    that as many objects as lines are one of each.
    """
    if all(line.count(b"{") == line.count(b"}") == 1 for line in lines):
        found = _decoded(b"[%s]" % b",".join(lines))
        if isinstance(found, list) and len(found) == len(lines) and all(type(values) is dict for values in found):
            return found
    return [values if isinstance(values := _decoded(line), dict) else {} for line in lines]


def _decoded(text: bytes) -> Any:
    try:
        return _DECODER.decode(text.decode())
    except (ValueError, RecursionError):  # ValueError: no JSON, no UTF-8, or a number of thousands of digits
        return None


def is_whole(values: dict[str, Any]) -> bool:
    """Whether a line holds what every line of `MetricsLog` does, each in its range."""
    step, epoch = values.get("step"), values.get("epoch")
    if type(step) is not int or step < 1 or epoch is None or values.get("split") not in SPLITS:
        return False
    for name, value in values.items():
        number = (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < 2**63)
        if not number and value is not None and name != "split":
            return False
    judged = score_name(values) or (values["split"] == "train" and "top5" not in values)  # of several labels an image
    return epoch > 0 and "loss" in values and bool(judged)


def describe(damaged: Sequence[Line]) -> str:
    """The damaged lines in words, to be followed by what happens to them."""
    numbers = [str(line.number) for line in damaged]
    if len(numbers) == 1:
        return f"line {numbers[0]} is damaged and"
    more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    return f"lines {', '.join(numbers[:5])}{more} are damaged and"


@functools.cache
def _say_once(message: str) -> None:
    terminal.warn(message)


def training_speed(lines: Sequence[dict[str, Any]]) -> float | None:
    """Images per second of a run's training, the median over its training lines; None if there are none."""
    speeds = [line["images_per_second"] for line in lines if line.get("images_per_second")]
    return statistics.median(speeds) if speeds else None
