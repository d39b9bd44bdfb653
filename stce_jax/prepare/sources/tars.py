"""ILSVRC2012 as it is distributed: a tar of 1000 tars with training images, and a tar of validation images.

To find the images only headers are read, and only of selected training classes; images are then read from where they
lie in the outer archive. Nothing is unpacked.
"""

import contextlib
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

from stce_jax.data.class_lists import is_wordnet_id
from stce_jax.data.records import is_image
from stce_jax.errors import DataError
from stce_jax.prepare.sources.references import Ignored, Reference, Source, check_classes, read_part, safe_parts
from stce_jax.prepare.sources.val_labels import DEVKIT, SOLUTION, find_labels, read_labels

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
_BLOCK = 512  # bytes; a tar ends with blocks of zeros


def open_tars(directory: Path, selected: Sequence[str] | None, val_labels: str) -> Source:
    """Opens a directory with both tars.

    Args:
      directory: where they are, and the devkit or LOC_val_solution.csv unless val_labels is given.
      selected: class ids, or None for all.
      val_labels: see `read_labels`, or "".

    Raises:
      DataError: a tar or the labels are missing or damaged, or a class has no images.
    """
    for name in (TRAIN, VAL):
        if not (directory / name).is_file():
            raise DataError(f"{directory} has no {name}; put both archives, {TRAIN} and {VAL}, into one directory")
    labels_from = val_labels or find_labels(directory)
    if not labels_from:
        raise DataError(
            f"{directory} has no labels of the validation images; put {DEVKIT}.tar.gz or {SOLUTION} there, "
            "or give --val-labels=FILE"
        )
    label = read_labels(labels_from)
    ignored = Ignored()
    references: list[Reference] = []
    others: set[str] = set()

    for member in _members(directory / TRAIN):
        class_id, _, ending = member.name.rpartition("/")[2].partition(".")
        if not safe_parts(member.name) or not is_wordnet_id(class_id) or ending != "tar":
            ignored.add(f"{TRAIN}: {member.name}")
        elif selected is not None and class_id not in selected:
            others.add(class_id)
        else:
            for inner in _members(directory / TRAIN, member):
                if _is_image_member(inner):
                    place = ("train", member.offset_data + inner.offset_data, inner.size)
                    references.append(Reference("train", class_id, inner.name, place))
                else:
                    ignored.add(f"{TRAIN}: {member.name}: {inner.name}")
    class_ids = tuple(sorted({reference.class_id for reference in references} if selected is None else selected))
    chosen = frozenset(class_ids)
    for member in _members(directory / VAL):
        if not _is_image_member(member):
            ignored.add(f"{VAL}: {member.name}")
        elif (class_id := label(member.name)) in chosen:
            references.append(Reference("val", class_id, member.name, ("val", member.offset_data, member.size)))

    check_classes(references, class_ids, directory, others | {reference.class_id for reference in references})
    descriptors = {split: os.open(directory / name, os.O_RDONLY) for split, name in (("train", TRAIN), ("val", VAL))}

    def read(reference: Reference) -> bytes:
        split, offset, size = reference.place
        return read_part(descriptors[split], offset, size, f"{reference} of {directory}")

    def close() -> None:
        for descriptor in descriptors.values():
            os.close(descriptor)

    return Source(
        kind=f"ILSVRC2012's archives {TRAIN} and {VAL} in {directory}",
        class_ids=class_ids,
        references=references,
        read=read,
        ignored=ignored,
        other_classes=len(others),
        note=f"validation labels from {labels_from}",
        close=close,
    )


def _members(path: Path, outer: tarfile.TarInfo | None = None) -> Iterator[tarfile.TarInfo]:
    """Headers of the regular files in a tar, or in the tar that is a member of it; offsets are those in that tar.

    Raises:
      DataError: it is not a tar, or damaged, or cut off: it must end as tars end.
    """
    name = f"{outer.name} in {path}" if outer else str(path)
    try:
        with contextlib.ExitStack() as stack:
            file: IO[bytes] = stack.enter_context(open(path, "rb"))
            if outer:
                file = cast(IO[bytes], stack.enter_context(_Window(file, outer.offset_data, outer.size)))
            archive = stack.enter_context(tarfile.open(fileobj=file, mode="r:"))
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                if member.isreg():
                    yield member
            file.seek(archive.offset)
            if file.read(_BLOCK).strip(b"\0") or file.tell() < archive.offset + _BLOCK:
                raise DataError(f"{name} is damaged or cut off at byte {archive.offset:,}; get it again")
    except tarfile.TarError as error:
        raise DataError(f"{name} is damaged or cut off: {error}; get it again") from error
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror or error}") from error


class _Window:
    """A part of an open file as a file of its own, with the methods that tarfile calls."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self._file, self._start, self._size, self._position = file, start, size, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def seek(self, position: int) -> None:
        self._position = position

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        self._file.seek(self._start + self._position)
        data = self._file.read(max(0, min(size, self._size - self._position)))
        self._position += len(data)
        return data


def _is_image_member(member: tarfile.TarInfo) -> bool:
    return bool(safe_parts(member.name)) and is_image(member.name)
