"""Sources with a folder for each class, unpacked or in a zip: train/<class>/ and val/<class>/, or as on Kaggle.

Kaggle's data set "imagenet100" has its training images in four folders train.X1 to train.X4, and val.X and Labels.json.
Its download of ILSVRC2012 has train and val in ILSVRC/Data/CLS-LOC, and LOC_val_solution.csv beside ILSVRC.
"""

import functools
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from stce_jax.data.finding import PassedOver, walk_files, why_not, why_not_entry
from stce_jax.data.formats import HEAD
from stce_jax.errors import DataError
from stce_jax.paths import first_line
from stce_jax.prepare.sources.listing import first_names
from stce_jax.prepare.sources.references import (
    WRONG_PLACE,
    Reference,
    Source,
    UnreadableError,
    check_classes,
    check_size,
    read_bounded,
    read_file,
    safe_parts,
)
from stce_jax.prepare.sources.val_labels import DEVKIT, SOLUTION, Labels, find_labels, parse_labels, read_labels

_SPLIT_FOLDER = re.compile(r"(train|val)(\.X\d*)?")
_CLS_LOC = ("ILSVRC", "Data", "CLS-LOC")  # where Kaggle's download of ILSVRC2012 has train and val
_Root = TypeVar("_Root", Path, tuple[str, ...])
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # bzip2's and LZMA's members cannot be unpacked in small steps


def split_folders(names: Iterable[str]) -> dict[str, tuple[str, bool]]:
    """{folder name: (split, whether as on Kaggle)} of those names that are folders of a split."""
    matches = {name: _SPLIT_FOLDER.fullmatch(name) for name in names}
    folders = {name: (match[1], match[2] is not None) for name, match in matches.items() if match}
    return folders if {split for split, _ in folders.values()} == {"train", "val"} else {}


def find_root(directory: Path) -> Path | None:
    """The directory itself, one just below, or ILSVRC/Data/CLS-LOC in one of these, that has train and val; or None.

    Hidden directories, and those that cannot be listed, are skipped.
    """
    os.listdir(directory)  # raises an OSError with the cause if it cannot be listed
    if split_folders(_folders_in(directory)):
        return directory
    below = [directory / name for name in _folders_in(directory)]
    ends = ("/".join(_CLS_LOC[start:]) for start in range(4))  # the last is the directory itself
    places = [place / end for end in ends for place in (directory, *below)]
    found = {os.path.realpath(place): place for place in places if split_folders(_folders_in(place))}
    return _only(directory, sorted(found.values()))


def open_tree(source: Path, root: Path, selected: Sequence[str] | None, val_labels: str) -> Source:
    """Opens class folders.

    Args:
      source: the directory that the user gave; labels of validation images are looked for from `root` up to it.
      root: directory with train and val folders, see `find_root`.
      selected: class ids, or None for all.
      val_labels: file with the labels of validation images that lie in no class folders, or "".
    """
    folders = split_folders(_folders_in(root))
    upwards = (root, *root.parents)
    highest = 3 if root.parts[-3:] == _CLS_LOC else 1
    places = upwards[: 1 + max(highest, upwards.index(source))]
    gathered = _Gathered(selected, bool(val_labels), lambda: _labels_at(val_labels or find_labels(*places)))
    for folder, (split, _) in sorted(folders.items()):
        for entry in sorted(os.scandir(root / folder), key=lambda entry: entry.name):
            if not entry.is_dir():
                gathered.add(split, None, entry.name, entry.path, entry.path, why_not_entry(entry, entry.name))
            elif gathered.has_class(entry.name):
                for file in walk_files(entry.path):
                    name = os.path.relpath(file.path, entry.path)
                    gathered.add(split, entry.name, name, file.path, file.path, why_not_entry(file, name))
    kind = f"{_kind(folders, root)} in {root}"
    return gathered.source(kind, lambda reference: read_file(reference.place, reference.place), root)


def open_zip(path: Path, selected: Sequence[str] | None, val_labels: str) -> Source | None:
    """Opens class folders within a zip archive; returns None if there are none in it."""
    archive = read_directory(path)
    passed_over = PassedOver()
    members = []
    for info in archive.infolist():
        if not info.filename:  # zipfile's own questions about such a member fail
            passed_over.add("", "without a name")
        elif not info.is_dir():
            members.append(info)
    roots: dict[tuple[str, ...], set[str]] = {}  # folders above those of the splits -> names of the latter
    for info in members:
        names = safe_parts(info.filename)
        for depth in range(min(len(names) - 1, 5)):
            if _SPLIT_FOLDER.fullmatch(names[depth]) and _is_root(names[:depth]):
                roots.setdefault(names[:depth], set()).add(names[depth])
    qualified = [root for root, names in sorted(roots.items()) if split_folders(names)]
    root = () if () in qualified else _only(path, qualified)
    if root is None:
        archive.close()
        return None
    folders, depth = split_folders(roots[root]), len(root)
    gathered = _Gathered(
        selected, bool(val_labels), lambda: _labels_at(val_labels) or _labels_in(archive, root) or _labels_beside(path)
    )
    gathered.passed_over = passed_over
    for info in members:
        names = safe_parts(info.filename)
        if len(names) < depth + 2 or names[:depth] != root or names[depth] not in folders:
            gathered.passed_over.add(info.filename, WRONG_PLACE)
            continue
        split, _ = folders[names[depth]]
        class_id, *rest = names[depth + 1 :]
        head = functools.partial(_head, archive, info)
        if not rest:
            gathered.add(split, None, class_id, info, info.filename, why_not(class_id, head))
        elif gathered.has_class(class_id):
            name = "/".join(rest)
            gathered.add(split, class_id, name, info, info.filename, why_not(name, head))
    kind = f"{_kind(folders, path)} in the archive {path}"
    source = gathered.source(kind, lambda reference: read_member(archive, reference.place), path)
    source.close = archive.close
    return source


def read_directory(path: Path) -> zipfile.ZipFile:
    """The opened zip archive; DataError if it is not a whole one."""
    try:
        return zipfile.ZipFile(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # whatever zipfile makes of a damaged directory
        raise DataError(
            f"cannot read {path}: {first_line(error)}; it is not a whole zip archive, so get it again"
        ) from error


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """The bytes of a zip archive's member, unpacked in steps of bounded size; DataError if it cannot be used."""
    name = f"{info.filename} of {archive.filename}"
    check_size(info.file_size, name)
    if info.compress_type not in _METHODS:
        raise DataError(f"cannot read {name}: neither stored nor deflated; pack the archive again")
    try:
        with archive.open(info) as member:
            return read_bounded(member, name)
    except DataError:
        raise
    except OSError as error:
        raise UnreadableError(f"cannot read {name}: {error.strerror or error}") from error
    except Exception as error:  # whatever zipfile makes of damaged, encrypted and cut off members
        raise DataError(f"cannot read {name}: {str(error) or type(error).__name__}") from error


def _head(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as member:
        return member.read(HEAD)


class _Gathered:
    """Collects references class by class, and gives those without a class theirs once all labels are needed."""

    def __init__(
        self,
        selected: Sequence[str] | None,
        given: bool,
        find_val_labels: Callable[[], tuple[Labels, str] | None],
    ) -> None:
        """`find_val_labels` returns the labels and where they are from, or None; `given`: the user gave the place."""
        self.selected = selected if selected is None else frozenset(selected)
        self.passed_over = PassedOver()
        self.references: list[Reference] = []
        self.classes: set[str] = set()
        self.others: set[str] = set()
        self._flat: list[tuple[str, Any]] = []
        self._given, self._find_val_labels = given, find_val_labels

    def has_class(self, class_id: str) -> bool:
        """Notes that the source has this class; returns whether it is selected."""
        if class_id.startswith("."):
            return False
        selected = self.selected is None or class_id in self.selected
        (self.classes if selected else self.others).add(class_id)
        return selected

    def add(self, split: str, class_id: str | None, name: str, place: Any, path: str, reason: str) -> None:
        """Adds a file, or passes it over for a reason of `why_not`."""
        name = name.replace(os.sep, "/")
        if reason:
            self.passed_over.add(path, reason)
        elif class_id is not None:
            self.references.append(Reference(split, class_id, name, place))
        elif split == "val":
            self._flat.append((name, place))
        else:
            self.passed_over.add(path, WRONG_PLACE)

    def source(self, kind: str, read: Callable[[Reference], bytes], where: Path) -> Source:
        note = self._label(where) if self._flat else ""
        class_ids = tuple(sorted(self.classes if self.selected is None else self.selected))
        if not class_ids:
            raise DataError(f"{where} has no class folders; put each class's images into a folder of its own")
        check_classes(self.references, class_ids, where, self.classes | self.others)
        return Source(kind, class_ids, self.references, read, self.passed_over, len(self.others), note)

    def _label(self, where: Path) -> str:
        """Sorts validation images that lie in no class folder into classes; returns where the labels are from."""
        in_folders = {reference.name.rpartition("/")[2] for reference in self.references if reference.split == "val"}
        if in_folders and not self._given:
            for name, _ in self._flat:  # stray files beside class folders
                self.passed_over.add(f"val/{name}", WRONG_PLACE)
            return ""
        labels = self._find_val_labels()
        if not labels:
            raise DataError(
                f"the validation images of {where} are in no class folders; give their labels with --val_labels=FILE "
                "(the devkit's .tar.gz, LOC_val_solution.csv, or lines of file name and WordNet id)"
            )
        label, labels_from = labels
        for name, place in self._flat:
            if name in in_folders:
                self.passed_over.add(f"val/{name}", WRONG_PLACE)
                continue
            class_id = label(name)
            if self.has_class(class_id):
                self.references.append(Reference("val", class_id, name, place))
        return f"validation labels from {labels_from}"


def _kind(folders: dict[str, tuple[str, bool]], where: Path) -> str:
    """What to call the layout; DataError if there are two for one split."""
    if len(set(folders.values())) > len({split for split, _ in folders.values()}):
        raise DataError(f"{where} holds two sets of images, in {', '.join(sorted(folders))}; keep one of them there")
    kaggle = any(kaggle for _, kaggle in folders.values())
    return "Kaggle's layout (train.X1, ..., val.X)" if kaggle else "class folders"


def _folders_in(directory: Path) -> list[str]:
    """Names of the folders in a directory that are not hidden; none if it is missing or cannot be listed."""
    try:
        return [path.name for path in directory.iterdir() if not path.name.startswith(".") and os.path.isdir(path)]
    except OSError:
        return []


def _is_root(names: tuple[str, ...]) -> bool:
    """Whether an archive's folders, one in the other, may hold those of the splits; as in `find_root`."""
    for end in (_CLS_LOC, _CLS_LOC[1:], ()):
        if names[len(names) - len(end) :] == end:
            above = names[: len(names) - len(end)]
            return len(above) <= 1 and not any(name.startswith((".", "__MACOSX")) for name in above)
    return False


def _only(where: Path, roots: Sequence[_Root]) -> _Root | None:
    """The one place with images, or None; DataError for several."""
    if len(roots) > 1:
        named = first_names(["/".join(root) if isinstance(root, tuple) else str(root) for root in roots])
        raise DataError(f"{where} holds {len(roots)} sets of images, in {named}; give one of them alone as --source")
    return next(iter(roots), None)


def _labels_at(path: str) -> tuple[Labels, str] | None:
    return (read_labels(path), path) if path else None


def _labels_beside(archive_path: Path) -> tuple[Labels, str] | None:
    return _labels_at(find_labels(archive_path.parent))


def _labels_in(archive: zipfile.ZipFile, root: tuple[str, ...]) -> tuple[Labels, str] | None:
    """The labels in an archive's folder `root` or above it."""
    for depth in range(len(root), -1, -1):
        for name in (f"{DEVKIT}.tar.gz", SOLUTION):
            full = "/".join((*root[:depth], name))
            if full in archive.NameToInfo:
                path = f"{full} in {archive.filename}"
                return parse_labels(read_member(archive, archive.getinfo(full)), path), path
    return None


def is_zip(path: Path) -> bool:
    """Whether a path is a zip archive, by its name."""
    return path.suffix.lower() == ".zip" and path.is_file()
