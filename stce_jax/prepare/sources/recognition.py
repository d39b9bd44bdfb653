"""Where images come from: which of four forms of a data set a path holds, and opening it."""

from stce_jax.data.catalog import absolute
from stce_jax.errors import DataError
from stce_jax.prepare.sources import folders, parquet, tars

FORMS = (
    "ILSVRC2012's two .tar archives, folders train/<class>/ and val/<class>/, Kaggle's train.X1 to train.X4 and val.X "
    "(folders, or a .zip of them), or parquet shards train-*.parquet and validation-*.parquet"
)


def open_source(path, class_ids=None, val_labels=""):
    """Recognises the form of a data set and finds its images, without reading them.

    Args:
      path: a directory or a .zip archive.
      class_ids: the classes wanted, or None for all that there are.
      val_labels: where the labels of validation images are, see `read_labels`; "" to look for them.

    Returns:
      `stce_jax.prepare.sources.references.Source`.

    Raises:
      DataError: nothing that is known, damaged, or without some of the classes.
    """
    path = absolute(path)
    if val_labels and not absolute(val_labels).exists():
        raise DataError(f"--val-labels={val_labels}: there is nothing; give the devkit or a file of labels")
    try:
        if path.is_dir():
            source = _open_directory(path, class_ids, val_labels)
        elif folders.is_zip(path):
            source = folders.open_zip(path, class_ids, val_labels)
        else:
            source = None
    except OSError as error:
        raise DataError(f"cannot read {error.filename or path}: {error.strerror or error}") from error
    if source is None:
        there = "there is nothing" if not path.exists() else "not recognised"
        raise DataError(f"--source={path}: {there}; it must hold {FORMS}")
    return source


def _open_directory(path, class_ids, val_labels):
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
    source = None
    if len(archives) == 1:  # the archive as it was downloaded, in a directory of its own
        source = folders.open_zip(archives[0], class_ids, val_labels)
    if source is None and any(tars_there):
        return tars.open_tars(path, class_ids, val_labels)  # which says what is missing
    return source
