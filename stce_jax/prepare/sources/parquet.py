"""Parquet shards as on Hugging Face: train-*.parquet and validation-*.parquet, columns image {bytes, path} and label.

A row cannot be read without unpacking its neighbours, so the selected images are first copied into one file, in a
sequential pass, and then read from that. Arrow may hold a whole group of rows, twice, while it reads one.
"""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from stce_jax.data.class_lists import ids_of_words, is_wordnet_id, load_class_ids
from stce_jax.errors import DataError
from stce_jax.paths import open_regular
from stce_jax.prepare.sources.listing import first_names
from stce_jax.prepare.sources.references import Reference, Source, check_classes, check_size, read_part

_SHARDS = {"train": ("train-*",), "val": ("validation-*", "val-*", "test-*")}  # the first that matches
_ID_IN_PATH = re.compile(r"(?:.*/)?(?:.*_(n\d{8})\.\w+|(n\d{8})_\d+\.\w+)")
_PART = re.compile(r"-(\d+)-of-(\d+)\b")
_ROWS = 8  # images in memory at a time, besides the group that they are from
_MAX_BYTES = 2 * 2**30  # of a group of rows, unpacked; Hugging Face's have 10 to 100 million

_Row = tuple[str, tuple[int, int], int, str | None]  # split, (file, row), label, path


def find_shards(directory: Path) -> dict[str, list[Path]] | None:
    """{split: paths} in the directory or its folder data, or None unless both splits are there."""
    for folder in (directory, directory / "data"):
        shards: dict[str, list[Path]] = {}
        for split, patterns in _SHARDS.items():
            found = (sorted(folder.glob(f"{pattern}.parquet")) for pattern in patterns)
            shards[split] = next((paths for paths in found if paths), [])
        if all(shards.values()):
            for paths in shards.values():
                _check_whole(folder, paths)
            return shards
    return None


def _check_whole(folder: Path, paths: Sequence[Path]) -> None:
    """Raises DataError if the shards' names show that some are missing, or that they belong to several sets."""
    parts = [tuple(map(int, match.groups())) for path in paths if (match := _PART.search(path.name))]
    if not parts:
        return
    total, kind = parts[0][1], paths[0].name.partition("-")[0]
    if len(parts) < len(paths) or len(set(parts)) < len(parts) or {of for _, of in parts} != {total}:
        raise DataError(f"{folder} mixes several sets of {kind}-*.parquet; keep the shards of one")
    missing = sorted(set(range(total)) - {number for number, _ in parts})
    if missing:
        some = first_names([f"{kind}-{number:05d}" for number in missing])
        raise DataError(f"{folder} lacks {len(missing)} of {total} {kind} shards: {some}; get them, too")
    if len(parts) > total:
        raise DataError(f"{folder} has shards beyond number {total - 1} of {kind}; keep the shards of one set")


def open_shards(directory: Path, shards: dict[str, list[Path]], selected: Sequence[str] | None) -> Source:
    """Opens parquet shards.

    Args:
      directory: what to call them.
      shards: of `find_shards`.
      selected: class ids, or None for all, under the names that the shards give their labels.

    Raises:
      DataError: they are damaged, do not say which classes their labels are, or lack a class.
    """
    files = [(split, path) for split, paths in shards.items() for path in paths]
    rows: list[_Row] = []
    names: list[str] | None = None
    for index, (split, path) in enumerate(files):
        with _reading(path) as file:
            _check_groups(file, path)
            own = _label_names(file)
            if names and own and names != own:
                raise DataError(f"{path} names its labels otherwise than {files[0][1]}; keep one data set there")
            names = names or own
            rows += [(split, (index, row), label, image) for row, (label, image) in enumerate(_labels(file, path))]
    if not rows:
        raise DataError(f"the parquet shards in {directory} hold no images; get them again, or name another --source")
    ids, rule = _class_ids(rows, names, directory, selected is None)
    class_ids = tuple(sorted(set(ids.values()) if selected is None else selected))
    chosen = frozenset(class_ids)
    references = [
        Reference(
            split, ids[label], image.rpartition("/")[2] if image else f"{place[0]:05d}_{place[1]:07d}.JPEG", place
        )
        for split, place, label, image in rows
        if ids[label] in chosen
    ]
    check_classes(references, class_ids, directory, {ids[label] for _, _, label, _ in rows})
    copy = _Copy(files, references)
    tested = " (test-* shards are taken for val)" if shards["val"][0].name.startswith("test-") else ""
    return Source(
        kind=f"parquet shards ({len(files)} files) in {directory}",
        class_ids=class_ids,
        references=references,
        read=copy.read,
        other_classes=len(set(ids.values()) - chosen),
        note=f"classes of the labels from {rule}{tested}",
        stage=copy.make,
        close=copy.close,
    )


class _Copy:
    """The selected images one after the other in a file."""

    def __init__(self, files: Sequence[tuple[str, Path]], references: Sequence[Reference]) -> None:
        self._files = files
        self._selected = {reference.place for reference in references}
        self._parts: dict[tuple[int, int], tuple[int, int | None]] = {}  # place -> (offset, size); None: no bytes
        self._descriptor: int | None = None

    def make(self, directory: Path, tick: Callable[[int, int], None]) -> None:
        path, offset = directory / "images", 0
        with open(path, "wb") as copy:
            for index, (_, shard) in enumerate(self._files):
                with _reading(shard) as file:
                    for row, image in _images(file, index, self._selected):
                        self._write(copy, image or b"")
                        self._parts[index, row] = offset, None if image is None else len(image)
                        offset += len(image or b"")
                        tick(len(self._parts), len(self._selected))
        self._descriptor = os.open(path, os.O_RDONLY)
        path.unlink()  # gone once the descriptor is closed, however this ends

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self, copy: IO[bytes], image: bytes) -> None:
        try:
            copy.write(image)
        except OSError as error:
            raise DataError(
                f"cannot write {copy.name}: {error.strerror}; make room, or give another --data_dir"
            ) from error

    def read(self, reference: Reference) -> bytes:
        assert self._descriptor is not None, "`make` comes before `read`"
        name = f"{reference} in row {reference.place[1]:,} of {self._files[reference.place[0]][1]}"
        offset, size = self._parts[reference.place]
        if size is None:
            raise DataError(f"cannot read {name}: the row has no image bytes")
        check_size(size, name)
        return read_part(self._descriptor, offset, size, name)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """The opened parquet file; what goes wrong in reading it becomes one line."""
    import pyarrow.parquet as pq

    try:
        open_regular(path).close()  # pyarrow would wait for what a pipe never gives
        # Without buffering ahead, a row group is read page by page.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
            yield file
    except (DataError, BrokenPipeError):  # the reader of the output has gone
        raise
    except Exception as error:  # whatever pyarrow makes of damaged files
        cause = " ".join(str(error).split())[:200]
        raise DataError(
            f"cannot read {path}: {cause}; it is no whole parquet file of images, so get it again"
        ) from error


def _label_names(file: Any) -> list[str] | None:
    """The labels' names in the metadata that Hugging Face writes, or None."""
    try:
        described = json.loads((file.schema_arrow.metadata or {})[b"huggingface"])
        names = described["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _labels(file: Any, path: Path) -> Iterator[tuple[int, str | None]]:
    """Yields (label, path or None) of every row."""
    import pyarrow as pa

    columns = set(file.schema_arrow.names)
    fields: set[str] = set()
    if "image" in columns and pa.types.is_struct(described := file.schema_arrow.field("image").type):
        fields = {field.name for field in described}
    if "label" not in columns or "bytes" not in fields:
        raise DataError(
            f"{path} has no columns label and image with bytes and path; it is not a set of labelled images"
        )
    read = ["label", *(["image.path"] if "path" in fields else [])]
    for batch in file.iter_batches(batch_size=8192, columns=read):
        labels = batch.column("label").to_pylist()
        images = batch.column("image").to_pylist() if "path" in fields else [None] * len(labels)
        for label, image in zip(labels, images, strict=True):
            if not isinstance(label, int) or label < 0:
                raise DataError(f"{path} has an image whose label is {label!r}, not 0, 1, ...; it cannot be used")
            yield label, (image or {}).get("path")


def _check_groups(file: Any, path: Path) -> None:
    """Raises DataError for a group of rows that would fill the memory."""
    for group in range(file.num_row_groups):
        if (size := file.metadata.row_group(group).total_byte_size) > _MAX_BYTES:
            raise DataError(
                f"cannot read {path}: a group of rows has {size:,} bytes, more than {_MAX_BYTES:,}; write them "
                "again in smaller groups"
            )


def _images(file: Any, index: int, places: set[tuple[int, int]]) -> Iterator[tuple[int, bytes | None]]:
    """Yields (row, bytes or None) of the selected rows, a few at a time."""
    first = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if any((index, row) in places for row in range(first, first + count)):
            row = first
            for batch in file.iter_batches(batch_size=_ROWS, row_groups=[group], columns=["image.bytes"]):
                images = batch.column("image").field("bytes")
                for place in range(len(images)):
                    if (index, row) in places:
                        yield row, images[place].as_py()
                    row += 1
        first += count


def _class_ids(
    rows: Sequence[_Row], names: list[str] | None, directory: Path, any_names: bool
) -> tuple[dict[int, str], str]:
    """({label: class id}, where the ids are from)."""
    ids: dict[int, str] = {}
    for _, _, label, path in rows:
        match = _ID_IN_PATH.fullmatch(path or "")
        if match and ids.setdefault(label, match[1] or match[2]) != (match[1] or match[2]):
            raise DataError(f"label {label} of {directory} has several WordNet ids in the paths of its images")
    labels = {label for _, _, label, _ in rows}
    if labels == set(ids):
        return ids, "the WordNet ids in the images' paths"
    if names and max(labels) < len(names):
        if (any_names or all(map(is_wordnet_id, names))) and len(set(names)) == len(names):
            return dict(enumerate(names)), "the names in the shards' metadata"
        found = ids_of_words(names)
        if found:
            return dict(enumerate(found)), "the words in the shards' metadata"
        if len(names) == 1000 and _mostly_sorted(names):
            return dict(enumerate(load_class_ids("all"))), "their order: the 1000 classes, sorted"
    raise DataError(
        f"{directory} does not tell which classes its labels are: neither the images' paths nor the metadata hold "
        "WordNet ids or ImageNet's words; use another --source"
    )


def _mostly_sorted(names: Sequence[str]) -> bool:
    """Whether the names whose words are known are in the order of the 1000 sorted ids."""
    ids = load_class_ids("all")
    known = [(found[0], expected) for name, expected in zip(names, ids, strict=True) if (found := ids_of_words([name]))]
    return len(known) >= 900 and all(one == other for one, other in known)
