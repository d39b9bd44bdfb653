"""What a source of images is when it is prepared: light references, and a function that reads one.

Nothing is ever unpacked to where an archive's member names point: images are read from where they lie.
"""

import dataclasses
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

from stce_jax.data.class_lists import LISTS, load_class_ids
from stce_jax.data.dataset import SPLITS
from stce_jax.data.decode import MAX_BYTES
from stce_jax.data.finding import PassedOver
from stce_jax.errors import DataError
from stce_jax.paths import first_line, open_regular
from stce_jax.prepare.sources.listing import first_names

WRONG_PLACE = "not in its place"  # why an image is passed over
# The names of ILSVRC2012's images, and what Hugging Face's copy appends: ILSVRC2012_val_00000293_n01440764.JPEG
_ILSVRC_STEM = re.compile(r"(ILSVRC2012_val_\d{8}|n\d{8}_\d+)_n\d{8}")


class UnreadableError(DataError):
    """An image could not be read, though it may be good: a link is broken, a disk or network fails."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reference:
    """An image of a source.

    Attributes:
      split: "train" or "val".
      class_id: the class that the source puts it into.
      name: the file's name within its class, with "/" between folders.
      place: where it lies, in the form that the source's `read` needs.
    """

    split: str
    class_id: str
    name: str
    place: Any

    def __str__(self) -> str:
        return f"{self.split}/{self.class_id}/{self.name}"


@dataclasses.dataclass
class Source:
    """The selected images of a source.

    Attributes:
      kind: what it was recognised as, in words.
      class_ids: sorted.
      references: of all selected images, in no particular order; `in_order` sorts them.
      read: Reference -> the file's bytes; may be called from several threads. UnreadableError: it cannot be read;
        DataError: it cannot be used.
      passed_over: files that are no images by `finding.why_not`, and those in an unexpected place.
      other_classes: number of classes that are there and were not selected.
      note: more to say about how it was understood, or "".
      stage: None, or a function (directory, tick) that has to be called before `read`: it copies the images that
        cannot be read singly into the directory, and calls tick(images copied so far, images to copy).
      close: closes open files; nothing can be read afterwards.
    """

    kind: str
    class_ids: tuple[str, ...]
    references: list[Reference]
    read: Callable[[Reference], bytes]
    passed_over: PassedOver = dataclasses.field(default_factory=PassedOver)
    other_classes: int = 0
    note: str = ""
    stage: Callable[[Path, Callable[[int, int], None]], None] | None = None
    close: Callable[[], None] = lambda: None


def in_order(references: Sequence[Reference]) -> dict[str, list[Reference]]:
    """{split: references in the order of their records}.

    The order is that of a hash of class and file name, in which it does not matter from which form of the data set the
    files come: archives name and sort the same images differently.
    """
    splits = {split: [reference for reference in references if reference.split == split] for split in SPLITS}
    for chosen in splits.values():
        chosen.sort(key=_order)
    return splits


def stem(name: str) -> str:
    """A file's name without folders, ending, and the class at the end of Hugging Face's names."""
    bare = PurePosixPath(name).stem
    match = _ILSVRC_STEM.fullmatch(bare)
    return match[1] if match else bare


def safe_parts(name: str) -> tuple[str, ...]:
    """The parts of an archive member's path, or () if it is absolute or climbs out of where it belongs."""
    parts = tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))
    return () if name.startswith(("/", "\\")) or ".." in parts else parts


def read_file(path: str | Path, name: str) -> bytes:
    """The bytes of an image file; DataError where there are more than MAX_BYTES, or it cannot be read."""
    try:
        with open_regular(path) as file:
            return read_bounded(file, name)
    except OSError as error:
        raise UnreadableError(f"cannot read {name}: {first_line(error)}") from error


def read_bounded(file: IO[bytes], name: str) -> bytes:
    """All that an open file holds; DataError if that is more than MAX_BYTES."""
    pieces, size = [], 0
    while piece := file.read(2**20):
        pieces.append(piece)
        size += len(piece)
        check_size(size, name)
    return b"".join(pieces)


def read_part(descriptor: int, offset: int, size: int, name: str) -> bytes:
    """Bytes of a part of an open file; threads may share the descriptor."""
    check_size(size, name)
    try:
        data = os.pread(descriptor, size, offset)
    except OSError as error:
        raise UnreadableError(f"cannot read {name}: {error.strerror}") from error
    if len(data) != size:
        raise UnreadableError(f"cannot read {name}: the archive is cut off")
    return data


def check_size(size: int, name: str) -> None:
    """Raises DataError for an image file of more than MAX_BYTES."""
    if size > MAX_BYTES:
        raise DataError(f"cannot read {name}: it has {size:,} bytes or more; at most {MAX_BYTES:,} are read")


def check_classes(
    found: Iterable[Reference], class_ids: Sequence[str], where: str | Path, there: Collection[str] = ()
) -> None:
    """Raises DataError if a class has no image in a split.

    Args:
      found: the selected images.
      class_ids: the selected classes.
      where: what to call the source.
      there: all class ids of the source, selected or not.
    """
    counts = Counter((reference.split, reference.class_id) for reference in found)
    for split in SPLITS:
        missing = [class_id for class_id in class_ids if not counts[split, class_id]]
        if missing:
            held = [f"--classes={name}" for name in LISTS if set(load_class_ids(name)) <= set(there)]
            hint = f" (it holds all classes of {', '.join(held)})" if held else ""
            some = first_names(missing)
            raise DataError(
                f"{where} has no {split} image of {len(missing)} of the {len(class_ids)} classes: {some}; "
                f"complete it, or name another --source or --classes{hint}"
            )


def _order(reference: Reference) -> tuple[bytes, str, str]:
    bare = f"{reference.class_id}/{stem(reference.name)}"
    return hashlib.sha256(bare.encode(errors="surrogateescape")).digest(), bare, reference.name
