"""Recognises which of four forms of a data set a path holds, and opens it."""

from collections.abc import Sequence
from pathlib import Path

from stce_jax.errors import DataError
from stce_jax.paths import absolute
from stce_jax.prepare.sources import folders, parquet, tars
from stce_jax.prepare.sources.references import Source

FORMS = (
    "ILSVRC2012's two .tar archives, folders train/<class>/ and val/<class>/, Kaggle's train.X1 to train.X4 and val.X "
    "(folders, or a .zip of them), or parquet shards train-*.parquet and validation-*.parquet"
)


def open_source(path: str | Path, class_ids: Sequence[str] | None = None, val_labels: str = "") -> Source:
    """Recognises the form of a data set and finds its images, without reading them.

    Args:
      path: a directory or a .zip archive.
      class_ids: the classes to select, or None for all.
      val_labels: where the labels of validation images are, see `read_labels`; "" to look for them.

    Raises:
      DataError: an unknown form, damaged, or without some of the classes.
    """
    root = absolute(path)
    if val_labels and not absolute(val_labels).exists():
        raise DataError(f"--val_labels={val_labels}: there is nothing; give the devkit or a file of labels")
    try:
        if root.is_dir():
            source: Source | None = _open_directory(root, class_ids, val_labels)
        elif folders.is_zip(root):
            source = folders.open_zip(root, class_ids, val_labels)
        else:
            source = None
    except OSError as error:
        raise DataError(f"cannot read {error.filename or root}: {error.strerror or error}") from error
    if source is None:
        there = "there is nothing" if not root.exists() else "not recognised"
        raise DataError(f"--source={root}: {there}; it must hold {FORMS}")
    return source


def _open_directory(path: Path, class_ids: Sequence[str] | None, val_labels: str) -> Source | None:
    tars_there = [(path / name).is_file() for name in (tars.TRAIN, tars.VAL)]
    if all(tars_there):
        return tars.open_tars(path, class_ids, val_labels)
    shards = parquet.find_shards(path)
    if shards:
        return parquet.open_shards(path, shards, class_ids)
    root = folders.find_root(path)
    if root:
        return folders.open_tree(path, root, class_ids, val_labels)
    archives = sorted(archive for archive in path.iterdir() if folders.is_zip(archive))
    source: Source | None = None
    if len(archives) == 1:  # the archive as downloaded, in a directory of its own
        source = folders.open_zip(archives[0], class_ids, val_labels)
    if source is None and any(tars_there):
        return tars.open_tars(path, class_ids, val_labels)  # its error says what is missing
    return source
