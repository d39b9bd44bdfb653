"""Accuracy of groups of images: of classes, or of the groups that a column of a CSV file names.

Shape letters: n images.
"""

import collections
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from stce_jax.analysis.intervals import wilson_interval
from stce_jax.errors import ConfigError, DataError, shown
from stce_jax.paths import first_line
from stce_jax.platform.csv_rows import read_rows

CLASS = "class"
KEYS = ("path", "index")  # columns that say which image a row is of; the first one that there is counts
MAX_BYTES = 2**30  # of a CSV file


class Groups(NamedTuple):
    """Which group each image is in.

    Attributes:
      names: of the groups.
      of_images: place among these of each image's group, int [n]; -1: in none.
      rows_without_image: rows of the CSV file that are of none of the images.
    """

    names: Sequence[str]
    of_images: Int[np.ndarray, "n"]
    rows_without_image: int = 0


def check_by(by: str) -> None:
    """Raises ConfigError unless a text is "class" or "FILE.csv:COLUMN"."""
    file, _, column = by.rpartition(":")
    if by != CLASS and not (file and column):
        raise ConfigError(f"by is {shown(by)}; it must be {CLASS}, or FILE.csv:COLUMN")


def read_groups(by: str, images: Sequence[str]) -> Groups:
    """The groups that a CSV file gives images by one of its columns.

    Another column says which image a row is of: "path", of the file from any folder above it on, or its name alone;
    or "index", its place among the images, from 0. Images of prepared data sets have no paths.

    Args:
      by: "FILE.csv:COLUMN". The file is UTF-8, with the columns' names in its first line.
      images: the images' names; those of files are paths.

    Raises:
      DataError: the file cannot be read, lacks a column, has two rows of an image or a path of several, or no row of
        any image.
    """
    file, _, column = by.rpartition(":")
    names: dict[str, int] = {}
    lines: dict[int, int] = {}  # image -> line of its row
    of_images, without, first = np.full(len(images), -1, np.int64), 0, ""
    find: Callable[[str], int | None] | None = None
    for line, key, text, group in _rows(file, column):
        find = find or (_Paths(images).find if key == "path" else functools.partial(_by_index, len(images)))
        first = first or text
        try:
            image = find(text)
        except ValueError as error:
            raise DataError(f"line {line} of {file}: {key} {shown(text)} {error}") from error
        if image is None:
            without += 1
            continue
        if image in lines:
            raise DataError(f"lines {lines[image]} and {line} of {file} are of the same image, {images[image]}")
        lines[image], of_images[image] = line, names.setdefault(group, len(names))
    if not lines:
        row = f"the first is of {shown(first)}" if find else "it has none"
        raise DataError(
            f"no row of {file} is of one of the images ({row}, the first image is {shown(images[0])}); give a column "
            "path, as in the data set, or index, the place of each image from 0"
        )
    return Groups(list(names), of_images, without)


def accuracies(groups: Groups, hits: Bool[np.ndarray, "n"]) -> list[dict[str, Any]]:
    """[{"group", "images", "top1", "low", "high"}, ...], the worst first; of equals the one with more images.

    "low" and "high" are the ends of Wilson's 95% interval. Of a group without images, which comes last, the three are
    None.
    """
    found = []
    for place, name in enumerate(groups.names):
        own = hits[groups.of_images == place]
        top1, low, high = wilson_interval(int(own.sum()), len(own)) if len(own) else (None, None, None)
        found.append({"group": name, "images": len(own), "top1": top1, "low": low, "high": high})
    return sorted(found, key=lambda row: (row["top1"] is None, row["top1"] or 0.0, -row["images"], row["group"]))


def _rows(file: str, column: str) -> Iterator[tuple[int, str, str, str]]:
    """(line, name of the column that says the image, what it says, group) of each row; raises DataError."""
    try:
        rows = read_rows(file, MAX_BYTES)
        _, columns = next(rows, (0, []))
        key = next((key for key in KEYS if key in columns), None)
        for wanted in (column, key):
            if wanted not in columns:
                lacks = f"column {shown(column)}" if wanted else "column path, or index, to tell the images by"
                raise DataError(f"{file} has no {lacks}; its columns are {', '.join(columns) or 'none'}")
        assert key is not None
        for line, row in rows:
            cells = dict(zip(columns, row, strict=False))
            yield line, key, cells.get(key, ""), cells.get(column, "")
    except (OSError, ValueError) as error:  # ValueError: a name that no file has
        raise DataError(f"cannot read {file}: {first_line(error)}; give --by=FILE.csv:COLUMN") from error


def _by_index(count: int, text: str) -> int | None:
    """The image at a place; None if there are fewer. Raises ValueError of what is no place."""
    if not text.strip().isdecimal() or len(text) > 18:
        raise ValueError("is no whole number from 0 on")
    return int(text) if int(text) < count else None


class _Paths:
    """Images by the ends of their paths."""

    def __init__(self, images: Sequence[str]) -> None:
        self._images = images
        self._paths = [PurePath(os.path.normpath(image)).parts for image in images]
        self._longest = max(map(len, self._paths), default=0)
        self._by_length: dict[int, dict[tuple[str, ...], list[int]]] = {}

    def find(self, text: str) -> int | None:
        """The image whose path ends with a path, None if there is none; raises ValueError if there are several."""
        parts = PurePath(os.path.normpath(text)).parts if text else ()
        if not 0 < len(parts) <= self._longest:
            return None
        if len(parts) not in self._by_length:
            ends = self._by_length[len(parts)] = collections.defaultdict(list)
            for place, path in enumerate(self._paths):
                ends[path[-len(parts) :]].append(place)
        found = self._by_length[len(parts)].get(parts, [])
        if len(found) > 1:
            raise ValueError(f"is of {self._images[found[0]]} and {self._images[found[1]]}; give more of the path")
        return found[0] if found else None
