"""What a source of images is to whoever prepares it: light references, and a function that reads one.

Nothing is ever unpacked to where an archive's member names point: images are read from where they lie.
"""

import dataclasses
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from stce_jax.data.catalog import SPLITS
from stce_jax.data.class_lists import LISTS, load_class_ids
from stce_jax.errors import DataError

MAX_BYTES = 256 * 2**20  # of an image file; what claims or turns out to be larger is refused
_IGNORED_KEPT = 1000  # names of passed-over files that are listed; beyond, they are counted
# The names of ILSVRC2012's images, and what Hugging Face's copy puts behind: ILSVRC2012_val_00000293_n01440764.JPEG
_ILSVRC_STEM = re.compile(r"(ILSVRC2012_val_\d{8}|n\d{8}_\d+)_n\d{8}")


class UnreadableError(DataError):
    """An image could not be read, which says nothing of the image: a link leads nowhere, a disk or network fails."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reference:
    """An image of a source.

    Attributes:
      split: "train" or "val".
      class_id: the class that the source puts it into.
      name: the file's name within its class, with "/" between folders.
      place: where it lies, for the source's `read`.
    """

    split: str
    class_id: str
    name: str
    place: Any

    def __str__(self):
        return f"{self.split}/{self.class_id}/{self.name}"


class Ignored:
    """Files of a source that are passed over: those that are no images by name, and those that lie out of place."""

    def __init__(self):
        self.names = []
        self.count = 0

    def add(self, name):
        self.count += 1
        if len(self.names) < _IGNORED_KEPT:
            self.names.append(name)


@dataclasses.dataclass
class Source:
    """The images of a source that are wanted.

    Attributes:
      kind: what it was recognised as, in words.
      class_ids: sorted.
      references: of all images wanted, in no particular order; `in_order` sorts them.
      read: Reference -> the file's bytes; may be called from several threads. UnreadableError: it cannot be read;
        DataError: what is there is no file that can be used.
      ignored: see `Ignored`.
      other_classes: number of classes that are there and not wanted.
      note: more to say about how it was understood, or "".
      stage: None, or a function (directory, tick) that has to be called before `read`: it copies the images that
        cannot be read singly into the directory, and calls tick(images copied so far, images to copy).
      close: lets go of open files; nothing can be read afterwards.
    """

    kind: str
    class_ids: tuple[str, ...]
    references: list[Reference]
    read: Callable[[Reference], bytes]
    ignored: Ignored = dataclasses.field(default_factory=Ignored)
    other_classes: int = 0
    note: str = ""
    stage: Callable | None = None
    close: Callable[[], None] = lambda: None


def in_order(references):
    """{split: references in the order of their records}.

    The order is that of a hash of class and file name, in which it does not matter from which form of the data set the
    files come: archives name and sort the same images differently.
    """
    splits = {split: [reference for reference in references if reference.split == split] for split in SPLITS}
    for chosen in splits.values():
        chosen.sort(key=_order)
    return splits


def stem(name):
    """A file's name without folders, ending, and the class that Hugging Face's names end with."""
    bare = PurePosixPath(name).stem
    match = _ILSVRC_STEM.fullmatch(bare)
    return match[1] if match else bare


def safe_parts(name):
    """The parts of an archive member's path, or () if it is absolute or climbs out of where it belongs."""
    parts = tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))
    return () if name.startswith(("/", "\\")) or ".." in parts else parts


def read_file(path, name):
    """The bytes of an image file; DataError where there are more than MAX_BYTES, or it cannot be read."""
    try:
        with open(path, "rb") as file:
            return read_bounded(file, name)
    except OSError as error:
        raise UnreadableError(f"cannot read {name}: {error.strerror}") from error


def read_bounded(file, name):
    """All that an open file holds, as long as that is at most MAX_BYTES."""
    pieces, size = [], 0
    while piece := file.read(2**20):
        pieces.append(piece)
        size += len(piece)
        check_size(size, name)
    return b"".join(pieces)


def read_part(descriptor, offset, size, name):
    """Bytes of a part of an open file; threads may share the descriptor."""
    check_size(size, name)
    try:
        data = os.pread(descriptor, size, offset)
    except OSError as error:
        raise UnreadableError(f"cannot read {name}: {error.strerror}") from error
    if len(data) != size:
        raise UnreadableError(f"cannot read {name}: the archive is cut off")
    return data


def check_size(size, name):
    if size > MAX_BYTES:
        raise DataError(f"cannot read {name}: it has {size:,} bytes or more; at most {MAX_BYTES:,} are read")


def check_classes(found, wanted, where, there=()):
    """Refuses references that leave a class of `wanted` without an image in a split.

    Args:
      found: references.
      wanted: class ids.
      where: what to call the source.
      there: all class ids of the source, wanted or not.
    """
    counts = Counter((reference.split, reference.class_id) for reference in found)
    for split in SPLITS:
        missing = [class_id for class_id in wanted if not counts[split, class_id]]
        if missing:
            some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            held = [f"--classes={name}" for name in LISTS if set(load_class_ids(name)) <= set(there)]
            hint = f" (it holds all classes of {', '.join(held)})" if held else ""
            raise DataError(
                f"{where} has no {split} image of {len(missing)} of the {len(wanted)} classes: {some}; "
                f"complete it, or name another --source or --classes{hint}"
            )


def _order(reference):
    bare = f"{reference.class_id}/{stem(reference.name)}"
    return hashlib.sha256(bare.encode(errors="surrogateescape")).digest(), bare, reference.name
