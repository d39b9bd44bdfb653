"""Which files are images, in folders and archives alike: by their suffix, or else by their first bytes.

A file whose suffix says that it is an image is not opened to find it. What is passed over is counted, by its reason.
"""

import collections
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from stce_jax.data import formats
from stce_jax.paths import open_regular

NO_IMAGE, HIDDEN, NO_FILE = "no image", "hidden", "no regular file"
_KEPT = 1000  # names that are listed; the others are counted


class PassedOver:
    """The files that were found beside images, and left out."""

    def __init__(self) -> None:
        self.files: list[tuple[str, str]] = []  # (name, reason), the first _KEPT
        self.reasons: collections.Counter[str] = collections.Counter()

    def add(self, name: str, reason: str) -> None:
        self.reasons[reason] += 1
        if len(self.files) < _KEPT:
            self.files.append((name, reason))

    def extend(self, other: Self) -> None:
        self.reasons.update(other.reasons)
        self.files += other.files[: _KEPT - len(self.files)]

    @property
    def count(self) -> int:
        return self.reasons.total()

    def text(self) -> str:
        """How many, why, and one of each kind, in one line; "" if there are none."""
        return f"passed over {self.count:,} files: {self.reasons_text()}" if self.count else ""

    def reasons_text(self) -> str:
        """Why they were, and one of each kind."""
        examples = {reason: name for name, reason in reversed(self.files)}
        return ", ".join(
            f"{count:,} {reason}" + (f" ({examples[reason][-60:]!r})" if reason in examples else "")
            for reason, count in self.reasons.most_common()
        )


def has_image_suffix(name: str) -> bool:
    """Whether a file's name alone says that it is an image."""
    return name.lower().endswith(formats.SUFFIXES)


def why_not(name: str, read_head: Callable[[], bytes]) -> str:
    """Why a file is not taken for an image, in a few words; "" if it is one. The one place where this is decided.

    Args:
      name: of the file, maybe with folders before it. Hidden files, such as macOS's "._x.JPEG", and those in hidden
        folders are never taken.
      read_head: returns the file's first `formats.HEAD` bytes; called only if the name does not tell.
    """
    if any(part.startswith(".") and part != "." for part in name.split("/")):
        return HIDDEN
    if has_image_suffix(name):
        return ""
    if name.lower().endswith(formats.CAMERA_RAW):
        return "a camera's raw file"
    try:
        kind = formats.format_of(read_head())
    except Exception as error:  # of a file system or an archive
        return f"unreadable: {getattr(error, 'strerror', None) or type(error).__name__}"
    if not kind:
        return NO_IMAGE
    return f"{kind}, which the package {package} reads" if (package := formats.missing(kind)) else ""


def why_not_entry(entry: os.DirEntry[str], name: str) -> str:
    """`why_not` of an entry of a folder that is no folder; `name` is its path from where hidden folders count."""
    try:
        regular = entry.is_file()
    except OSError:
        regular = False
    if not regular:
        # Of a broken link that is called an image the error is said when it is read.
        broken = entry.is_symlink() and not os.path.exists(entry.path)
        return why_not(name, lambda: b"") if broken else NO_FILE
    return why_not(name, lambda: _head(entry.path))


def _head(path: str) -> bytes:
    with open_regular(path) as file:
        return file.read(formats.HEAD)


def find_images(folder: str | Path, passed_over: PassedOver) -> list[str]:
    """The paths of the images in a folder, at any depth, sorted; the other files are added to `passed_over`.

    Raises:
      OSError: a folder cannot be listed.
    """
    found = []
    for entry in walk_files(folder):
        if reason := why_not_entry(entry, entry.name):
            passed_over.add(entry.path, reason)
        else:
            found.append(entry.path)
    return sorted(found)


def walk_files(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    """Yields what is no folder at any depth, sorted; hidden folders are skipped.

    Links are followed, except to a folder that contains this one: the images of other classes may lie there.

    Raises:
      OSError: a folder cannot be listed.
    """
    parents = (*Path(folder).absolute().parents, *Path(os.path.realpath(folder)).parents)
    yield from _walk(os.fspath(folder), frozenset(map(_inode, parents)))


def _walk(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[os.DirEntry[str]]:
    above |= {_inode(folder)}
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if not entry.is_dir():
            yield entry
        elif not entry.name.startswith(".") and _inode(entry.path) not in above:
            yield from _walk(entry.path, above)


def _inode(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino
