"""Sources with a folder for each class, unpacked or in a zip: train/<class>/ and val/<class>/, or as on Kaggle.

Kaggle's data set "imagenet100" has its training images in four folders train.X1 to train.X4, and val.X and Labels.json.
"""

import os
import re
import zipfile
from pathlib import Path

from stce_jax.data.sources.references import (
    Ignored,
    Reference,
    Source,
    check_classes,
    check_size,
    is_image,
    read_bounded,
    read_file,
    safe_parts,
)
from stce_jax.data.sources.val_labels import find_labels, read_labels
from stce_jax.errors import DataError

_SPLIT_FOLDER = re.compile(r"(train|val)(\.X\d*)?")
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # bzip2's and LZMA's members cannot be unpacked in small steps


def split_folders(names):
    """{folder name: (split, whether as on Kaggle)} of those names that are folders of a split."""
    matches = {name: _SPLIT_FOLDER.fullmatch(name) for name in names}
    folders = {name: (match[1], match[2] is not None) for name, match in matches.items() if match}
    return folders if {split for split, _ in folders.values()} == {"train", "val"} else {}


def find_root(directory):
    """The directory itself or the one just below that has folders for train and val, or None."""
    for root in (directory, *sorted(path for path in directory.iterdir() if path.is_dir())):
        if split_folders(path.name for path in root.iterdir() if path.is_dir()):
            return root
    return None


def open_tree(root, wanted, val_labels):
    """Opens class folders.

    Args:
      root: directory with train and val folders, see `find_root`.
      wanted: class ids, or None for all that there are.
      val_labels: file with the labels of validation images that lie in no class folders, or "".
    """
    folders = split_folders(path.name for path in root.iterdir() if path.is_dir())
    gathered = _Gathered(wanted, lambda: val_labels or find_labels(root, root.parent))
    for folder, (split, _) in sorted(folders.items()):
        for entry in sorted(os.scandir(root / folder), key=lambda entry: entry.name):
            if not entry.is_dir():
                gathered.add(split, None, entry.name, entry.path, entry.path)
            elif gathered.has_class(entry.name):
                for path in _files(entry.path):
                    gathered.add(split, entry.name, os.path.relpath(path, entry.path), path, path)
    kind = f"{_kind(folders)} in {root}"
    return gathered.source(kind, lambda reference: read_file(reference.place, reference.place), root)


def open_zip(path, wanted, val_labels):
    """Opens class folders within a zip archive; returns None if there are none in it."""
    archive = read_directory(path)
    members = [info for info in archive.infolist() if not info.is_dir()]
    for depth in (0, 1):
        names = (safe_parts(info.filename) for info in members)
        folders = split_folders({name[depth] for name in names if len(name) > depth + 1})
        if folders:
            break
    else:
        return None
    gathered = _Gathered(wanted, lambda: val_labels)
    for info in members:
        names = safe_parts(info.filename)
        if len(names) < depth + 2 or names[depth] not in folders:
            gathered.ignored.add(info.filename)
            continue
        split, _ = folders[names[depth]]
        class_id, *rest = names[depth + 1 :]
        if not rest:
            gathered.add(split, None, class_id, info, info.filename)
        elif gathered.has_class(class_id):
            gathered.add(split, class_id, "/".join(rest), info, info.filename)
    kind = f"{_kind(folders)} in the archive {path}"
    return gathered.source(kind, lambda reference: read_member(archive, reference.place), path)


def read_directory(path):
    """The opened zip archive."""
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise DataError(
            f"cannot read {path}: {error or 'it is cut off'}; it is no whole zip archive, so get it again"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def read_member(archive, info):
    """The bytes of a zip archive's member, unpacked in steps of bounded size."""
    name = f"{info.filename} of {archive.filename}"
    check_size(info.file_size, name)
    if info.compress_type not in _METHODS:
        raise DataError(f"cannot read {name}: neither stored nor deflated; pack the archive anew")
    try:
        with archive.open(info) as member:
            return read_bounded(member, name)
    except DataError:
        raise
    except Exception as error:  # whatever zipfile makes of damaged, encrypted and cut off members
        raise DataError(f"cannot read {name}: {str(error) or type(error).__name__}") from error


class _Gathered:
    """Collects references class by class, and gives those without a class theirs once all labels are needed."""

    def __init__(self, wanted, find_val_labels):
        self.wanted = wanted if wanted is None else frozenset(wanted)
        self.ignored = Ignored()
        self.references = []
        self.classes, self.others = set(), set()
        self._flat = []
        self._find_val_labels = find_val_labels

    def has_class(self, class_id):
        """Notes that the source has this class; returns whether its images are wanted."""
        if class_id.startswith("."):
            return False
        wanted = self.wanted is None or class_id in self.wanted
        (self.classes if wanted else self.others).add(class_id)
        return wanted

    def add(self, split, class_id, name, place, path):
        name = name.replace(os.sep, "/")
        if not is_image(name):
            self.ignored.add(str(path))
        elif class_id is not None:
            self.references.append(Reference(split, class_id, name, place))
        elif split == "val":
            self._flat.append((name, place))
        else:
            self.ignored.add(str(path))

    def source(self, kind, read, where):
        note = self._label(where) if self._flat else ""
        class_ids = tuple(sorted(self.classes if self.wanted is None else self.wanted))
        if not class_ids:
            raise DataError(f"{where} has no class folders; put each class's images into a folder of its own")
        check_classes(self.references, class_ids, where)
        return Source(kind, class_ids, self.references, read, self.ignored, len(self.others), note)

    def _label(self, where):
        """Sorts validation images that lie in no class folder into classes; returns where the labels are from."""
        labels_from = self._find_val_labels()
        if not labels_from:
            if any(reference.split == "val" for reference in self.references):
                for name, _ in self._flat:  # strays beside proper class folders
                    self.ignored.add(f"val/{name}")
                return ""
            raise DataError(
                f"the validation images of {where} are in no class folders; give their labels with --val-labels=FILE "
                "(the devkit's .tar.gz, LOC_val_solution.csv, or lines of file name and WordNet id)"
            )
        label = read_labels(labels_from)
        for name, place in self._flat:
            class_id = label(name)
            if self.has_class(class_id):
                self.references.append(Reference("val", class_id, name, place))
        return f"validation labels from {labels_from}"


def _kind(folders):
    return (
        "Kaggle's layout (train.X1, ..., val.X)" if any(kaggle for _, kaggle in folders.values()) else "class folders"
    )


def _files(folder):
    """Paths of all files at any depth; links are followed, hidden folders are not entered."""
    for parent, inner, files in os.walk(folder, followlinks=True):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield from (os.path.join(parent, name) for name in sorted(files))


def is_zip(path):
    return Path(path).is_file() and Path(path).suffix.lower() == ".zip"
