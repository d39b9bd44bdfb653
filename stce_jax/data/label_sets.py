"""Images with any number of labels: train/ and val/, whatever folders are in them, and labels.csv beside them.

Shape letters: n images, K classes.
"""

import codecs
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from stce_jax.data.dataset import IMAGENET_MEAN, IMAGENET_STD, SPLITS, Dataset, hash_of
from stce_jax.data.finding import PassedOver, find_images
from stce_jax.data.records import Record, read_record, size_of
from stce_jax.errors import DataError, shown
from stce_jax.paths import open_regular
from stce_jax.platform.csv_rows import read_rows

TABLE = "labels.csv"
PATH, LABELS, SEPARATOR = "path", "labels", ";"
_MAX_BYTES, _LONGEST_LINE = 2**31, 2**20
Labels = UInt8[np.ndarray, "K"]  # 1 where the image has the label, else 0


class Table(NamedTuple):
    """What a labels.csv says.

    Attributes:
      class_ids: sorted.
      lines: {path below the data directory: (number of its line, its labels)}.
    """

    class_ids: tuple[str, ...]
    lines: Mapping[str, tuple[int, Labels]]


class LabelledFiles:
    """The image files of one split with their labels, sorted by path.

    Attributes:
      label_shape: of a record's label, (K,).
    """

    def __init__(self, root: Path, files: Sequence[str], labels: UInt8[np.ndarray, "n K"]) -> None:
        self._root, self._files, self._labels = root, files, labels
        self.label_shape = labels.shape[1:]

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        return self._files[index]

    def __getitem__(self, index: int) -> Record:
        return read_record(self._files[index], self._labels[index])

    def labels(self) -> UInt8[np.ndarray, "n K"]:
        """The labels of each image; nothing is read for them."""
        return self._labels

    def listing(self) -> Iterator[str]:
        """Yields labels, path and size of each file: enough to notice that something has changed."""
        for path, labels in zip(self._files, self._labels, strict=True):
            yield f"{labels.tobytes().hex()} {os.path.relpath(path, self._root)} {size_of(path)}"


def open_label_sets(root: Path, splits: Sequence[str]) -> Dataset:
    """The images under root/train and root/val, at any depth, with the labels that root/labels.csv gives them.

    Raises:
      DataError: the table cannot be read, see `read_table`; a folder is missing or has no image; an image has no line,
        a line has no image, or a class has no training image.
    """
    table, passed_over = read_table(root / TABLE), PassedOver()
    sources = {split: _open_split(root, split, table, passed_over) for split in splits}
    for split, source in sources.items():
        counts = source.labels().sum(axis=0)
        if split == "train" and not counts.all():
            name = table.class_ids[int(counts.argmin())]
            raise DataError(
                f"no training image has the label {shown(name)} of {root / TABLE}; add some, or take the label out"
            )
        if not counts.any():
            raise DataError(f"no image of {root / split} has a label; nothing can be measured on them")
    return Dataset(
        train=sources.get("train"),
        val=sources.get("val"),
        class_ids=table.class_ids,
        class_names=table.class_ids,
        find_fingerprint=lambda: hash_of(
            [*table.class_ids, *(f"{split} {line}" for split in splits for line in sources[split].listing())]
        ),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        passed_over=passed_over.text(),
    )


def is_there(root: Path) -> bool:
    """Whether a directory has a labels.csv that begins as one does; other data sets have files of that name, too."""
    try:
        with open_regular(root / TABLE) as file:
            return file.readline(_LONGEST_LINE).lstrip(codecs.BOM_UTF8).split(b",")[0].strip() == PATH.encode()
    except (OSError, ValueError):  # ValueError: no path can be so
        return False


def read_table(path: Path) -> Table:
    """Reads labels.csv, whose first line says its form.

    `path,labels` is followed by lines such as `train/a.jpg,cat;dog`, the labels separated by ";"; they may be none.
    `path,cat,dog` is followed by `train/a.jpg,1,0`: a column for each class.

    Raises:
      DataError: it cannot be read, is neither, or names an image twice; with the number of the line.
    """
    try:
        rows = list(read_rows(path, _MAX_BYTES))
    except FileNotFoundError as error:
        raise DataError(
            f"{path.parent} has no {TABLE}, which gives each image its labels where config.task is multi_label; write "
            "it, or leave the key out for one class folder a label"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; repair it") from error
    header = [cell.strip() for cell in rows[0][1]] if rows else []
    if len(header) < 2 or header[0] != PATH or "" in header or len(set(header)) < len(header):
        raise DataError(
            f"{path}: the first line is {shown(','.join(header))}; it must be `{PATH},{LABELS}`, or `{PATH}` and the "
            "name of each class, once"
        )
    cells = [(number, row) for number, row in rows[1:]]
    for number, row in cells:
        if len(row) != len(header):
            raise DataError(f"{path}, line {number}: there are {len(row)} values, and {len(header)} in the first line")
    if header[1:] == [LABELS]:
        sets = [(number, row[0], _split(row[1])) for number, row in cells]
        class_ids = tuple(sorted(set().union(*(labels for *_, labels in sets))))
    else:
        sets = [(number, row[0], _marked(path, number, header[1:], row[1:])) for number, row in cells]
        class_ids = tuple(sorted(header[1:]))
    if not class_ids:
        raise DataError(f"{path} gives no image a label; write them behind the paths, separated by {SEPARATOR!r}")
    return Table(class_ids, _by_path(path, class_ids, sets))


def _by_path(
    path: Path, class_ids: Sequence[str], sets: Iterable[tuple[int, str, set[str]]]
) -> dict[str, tuple[int, Labels]]:
    places = {name: place for place, name in enumerate(class_ids)}
    lines: dict[str, tuple[int, Labels]] = {}
    for number, written, names in sets:
        name = os.path.normpath(written.strip())
        if name.split("/")[0] not in SPLITS or "/" not in name:
            raise DataError(f"{path}, line {number}: {shown(written)} is no path that begins with train/ or val/")
        if name in lines:
            raise DataError(f"{path}, line {number}: {shown(name)} is in line {lines[name][0]}, too; remove one")
        labels = np.zeros(len(class_ids), np.uint8)
        labels[[places[label] for label in names]] = 1
        lines[name] = number, labels
    return lines


def _split(cell: str) -> set[str]:
    return {label for part in cell.split(SEPARATOR) if (label := part.strip())}


def _marked(path: Path, number: int, class_ids: Sequence[str], cells: Sequence[str]) -> set[str]:
    """The classes whose column has a 1."""
    marks = [cell.strip() for cell in cells]
    odd = [mark for mark in marks if mark not in ("0", "1")]
    if odd:
        raise DataError(f"{path}, line {number}: {shown(odd[0])} is neither 0 nor 1")
    return {name for name, mark in zip(class_ids, marks, strict=True) if mark == "1"}


def _open_split(root: Path, split: str, table: Table, passed_over: PassedOver) -> LabelledFiles:
    if not (root / split).is_dir():
        raise DataError(f"{root} has no folder {split!r}; it needs the images that {TABLE} names")
    try:
        files = find_images(root / split, passed_over)
    except OSError as error:
        raise DataError(f"cannot list {error.filename}: {error.strerror}; make it readable") from error
    names = [os.path.relpath(file, root) for file in files]
    missing = [name for name in names if name not in table.lines]
    if missing:
        raise DataError(
            f"{_some(missing)} of {root} {_has(missing)} no line in {TABLE}; add it, or move the image away"
        )
    there = set(names)
    gone = [name for name in table.lines if name.startswith(f"{split}/") and name not in there]
    if gone:
        number = table.lines[gone[0]][0]
        raise DataError(f"{root / TABLE}, line {number}: there is no image {_some(gone)}; take the line out, or add it")
    if not files:
        raise DataError(f"{root / split} holds no image; add some")
    return LabelledFiles(root, files, np.stack([table.lines[name][1] for name in names]))


def _some(names: Sequence[str]) -> str:
    return shown(names[0]) + (f" and {len(names) - 1:,} more" if len(names) > 1 else "")


def _has(names: Sequence[str]) -> str:
    return "has" if len(names) == 1 else "have"
