"""ILSVRC2012 as it is distributed: a tar of 1000 tars with training images, and a tar of validation images.

To find the images only headers are read, and only of selected training classes; images are then read from where they
lie in the outer archive. Nothing is unpacked.
"""

import contextlib
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

from stce_jax.data.class_lists import is_wordnet_id
from stce_jax.data.finding import NO_FILE, PassedOver, why_not
from stce_jax.data.formats import HEAD
from stce_jax.errors import DataError
from stce_jax.paths import first_line, open_regular
from stce_jax.prepare.sources.references import WRONG_PLACE, Reference, Source, check_classes, read_part, safe_parts
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
            "or give --val_labels=FILE"
        )
    label = read_labels(labels_from)
    passed_over = PassedOver()
    references: list[Reference] = []
    others: set[str] = set()

    with contextlib.ExitStack() as opening:
        archives = {
            split: opening.enter_context(open_regular(directory / name))
            for split, name in (("train", TRAIN), ("val", VAL))
        }

        descriptors = {split: archive.fileno() for split, archive in archives.items()}

        def reason(split: str, offset: int, member: tarfile.TarInfo) -> str:
            """Why a member that begins there is passed over; "" for an image."""
            if not member.isreg():
                return NO_FILE
            if not safe_parts(member.name):
                return WRONG_PLACE
            size = min(member.size, HEAD)
            return why_not(member.name, lambda: read_part(descriptors[split], offset, size, member.name))

        for member in _members(directory / TRAIN):
            class_id, _, ending = member.name.rpartition("/")[2].partition(".")
            if not (member.isreg() and safe_parts(member.name) and is_wordnet_id(class_id) and ending == "tar"):
                passed_over.add(f"{TRAIN}: {member.name}", WRONG_PLACE)
            elif selected is not None and class_id not in selected:
                others.add(class_id)
            else:
                for inner in _members(directory / TRAIN, member):
                    offset = member.offset_data + inner.offset_data
                    if why := reason("train", offset, inner):
                        passed_over.add(f"{TRAIN}: {member.name}: {inner.name}", why)
                    else:
                        references.append(Reference("train", class_id, inner.name, ("train", offset, inner.size)))
        class_ids = tuple(sorted({reference.class_id for reference in references} if selected is None else selected))
        chosen = frozenset(class_ids)
        for member in _members(directory / VAL):
            if why := reason("val", member.offset_data, member):
                passed_over.add(f"{VAL}: {member.name}", why)
            elif (class_id := label(member.name)) in chosen:
                references.append(Reference("val", class_id, member.name, ("val", member.offset_data, member.size)))
        check_classes(references, class_ids, directory, others | {reference.class_id for reference in references})
        close = opening.pop_all().close

    def read(reference: Reference) -> bytes:
        split, offset, size = reference.place
        return read_part(descriptors[split], offset, size, f"{reference} of {directory}")

    return Source(
        kind=f"ILSVRC2012's archives {TRAIN} and {VAL} in {directory}",
        class_ids=class_ids,
        references=references,
        read=read,
        passed_over=passed_over,
        other_classes=len(others),
        note=f"validation labels from {labels_from}",
        close=close,
    )


def _members(path: Path, outer: tarfile.TarInfo | None = None) -> Iterator[tarfile.TarInfo]:
    """Headers of what is no folder in a tar, or in the tar that is a member of it; offsets are those in that tar.

    Raises:
      DataError: it is not a tar, or damaged, or cut off: it must end as tars end.
    """
    name = f"{outer.name} in {path}" if outer else str(path)
    try:
        with contextlib.ExitStack() as stack:
            file: IO[bytes] = stack.enter_context(open_regular(path))
            if outer:
                file = cast(IO[bytes], stack.enter_context(_Window(file, outer.offset_data, outer.size)))
            archive = stack.enter_context(tarfile.open(fileobj=file, mode="r:"))
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                if not member.isdir():
                    yield member
            file.seek(archive.offset)
            if file.read(_BLOCK).strip(b"\0") or file.tell() < archive.offset + _BLOCK:
                raise DataError(f"{name} is damaged or cut off at byte {archive.offset:,}; get it again")
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror or error}") from error
    except Exception as error:  # of damaged headers, tarfile.TarError is not the only one
        raise DataError(f"{name} is damaged or cut off: {first_line(error)}; get it again") from error


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
