"""Datasets by name: where their images are, what their classes are called, how their pixels are normalised.

A dataset's splits are random-access sources of records, see `records`.
"""

import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from stce_jax.data import class_lists, mirror
from stce_jax.data.builders import open_builder
from stce_jax.data.dataset import IMAGENET_MEAN, IMAGENET_STD, SPLITS, Dataset, hash_of
from stce_jax.data.finding import PassedOver
from stce_jax.data.label_sets import open_label_sets
from stce_jax.data.places import (
    VERSION,
    called,
    check_name,
    config_name,
    default_data_dir,
    find_prepared,
    is_complete,
    not_prepared,
    prepared,
    raw_short_side_of,
)
from stce_jax.data.records import FolderSource, TfdsSource, damaged
from stce_jax.errors import ConfigError, DataError, check_choice, check_text, check_whole, shown
from stce_jax.paths import absolute, first_line, is_remote, open_path

PREPARED = ("imagenet100", "imagenet2012", "folder")  # what `stce prepare` makes
LARGEST_RAW = 4096  # pixels of the short side of raw images
DATASETS = ("digits", "folder", "imagenet100", "imagenet2012")
TASKS = SINGLE_LABEL, MULTI_LABEL = "single_label", "multi_label"


def check_options(*, dataset: str, task: str, raw_short_side: int, data_dir: str, classes: str) -> None:
    """Raises ConfigError if a config's options of datasets cannot work, whatever is there."""
    check_choice("config.dataset", dataset, DATASETS)
    check_choice("config.task", task, TASKS)
    check_whole("config.raw_short_side", raw_short_side, 0, LARGEST_RAW)
    check_text("config.data_dir", data_dir)
    check_text("config.classes", classes)
    if task == MULTI_LABEL:
        _check_label_sets(dataset, raw_short_side, classes)


def open_dataset(
    name: str,
    data_dir: str | Path = "",
    classes: str = "",
    splits: Sequence[str] = SPLITS,
    raw_short_side: int = 0,
    *,
    task: str = SINGLE_LABEL,
    of_run: bool = False,
) -> Dataset:
    """Opens a dataset; the digits are prepared first if they are not there.

    Args:
      name: one of DATASETS; "digits" are made from scikit-learn at first use, under a lock.
      data_dir: the directory that holds prepared datasets, by default the user's data directory; for "folder" that, or
        a directory with train/<class>/ and val/<class>/. What is needed of a remote one ("gs://...") is copied to the
        local disk, see `mirror`; digits that are not there are prepared in the user's data directory.
      classes: for "imagenet100" the list of classes, see `class_lists.load_class_ids`, by default "kaggle", or the
        name it was prepared under; for "folder" the name of the prepared dataset, if data_dir holds several.
      splits: those that are needed; of class folders the others need not exist.
      raw_short_side: 0 for images as they were, or the short side, in pixels, that raw ones were prepared with. One
        kind never replaces the other.
      task: one of TASKS: what an image's label is, its class, or all of its labels, see `label_sets`.
      of_run: for a run that is trained. Its config stands, so errors advise what `stce evaluate` takes instead.

    Raises:
      ConfigError: an unknown name or list, "folder" without a data_dir, a remote data_dir that cannot be opened, or raw
        digits.
      DataError: it is not prepared, damaged or under other labels; the images are missing, a class is empty, or train
        and val have different classes.
    """
    if name not in DATASETS:
        raise ConfigError(f"there is no dataset {name!r}; the datasets are {', '.join(DATASETS)}")
    if classes and name not in ("folder", "imagenet100"):
        raise ConfigError(f"dataset {name!r} has no choice of classes, but was given {classes!r}")
    if raw_short_side and name == "digits":
        raise ConfigError(f'dataset "digits" cannot be prepared raw, but was given raw_short_side={raw_short_side}')
    if task == MULTI_LABEL:
        _check_label_sets(name, raw_short_side, classes)
        if is_remote(data_dir) or not data_dir:
            raise ConfigError("images with several labels are read from a local folder; give its path as --data_dir")
        return open_label_sets(Path(_open_root(data_dir)), splits)
    if name == "folder":
        if not data_dir:
            raise ConfigError(
                'dataset "folder" needs --data_dir=DIR, a directory with train/<class>/ and val/<class>/, or the one '
                "that `stce prepare folder` wrote to"
            )
        return _open_folder_dataset(_open_root(data_dir), classes, splits, raw_short_side, of_run)
    root = _open_root(data_dir or default_data_dir())
    check_name(root)
    if name == "digits":
        return _open_digits(root)
    classes = "all" if name == "imagenet2012" else classes or "kaggle"
    found = find_prepared(root, name, classes, raw_short_side)
    if found is None:
        sides = {raw_short_side_of(path) for path in prepared(root, name)} - {raw_short_side}
        others = [find_prepared(root, name, classes, side) for side in sides]
        raise not_prepared(root, name, classes, raw_short_side, [other for other in others if other], of_run)
    return open_prepared(_local(root, found))


def _check_label_sets(name: str, raw_short_side: int, classes: str) -> None:
    """Refuses what images with several labels cannot have."""
    found: dict[str, Any] = {"dataset": name, "raw_short_side": raw_short_side, "classes": classes}
    for option, wanted in (("dataset", "folder"), ("raw_short_side", 0), ("classes", "")):
        if found[option] != wanted:
            raise ConfigError(
                f"config.{option} is {shown(found[option])}; with config.task multi_label it must be {wanted!r}, of "
                "images in train/ and val/ with labels.csv beside them"
            )


def check_single_label(task: str, what: str, remedy: str) -> None:
    """Refuses what is only of images with one label each; `what` begins the sentence, `remedy` ends it.

    Raises:
      ConfigError: the task is another.
    """
    if task != SINGLE_LABEL:
        raise ConfigError(f"{what} where images have one label each, and this run's config.task is {task}; {remedy}")


def check_class_names(dataset: Dataset, class_ids: Iterable[str]) -> None:
    """Raises DataError for a dataset whose classes, by their ids, are not those a model was trained on."""
    if dataset.class_ids != tuple(class_ids):
        odd = sorted(set(dataset.class_ids) ^ set(class_ids)) or ["their order"]
        raise DataError(
            f"the dataset's classes are not the run's: {odd[0]!r} differs; give the --data_dir it was trained on"
        )


def open_prepared(directory: Path) -> Dataset:
    """Opens what `stce prepare` wrote.

    Raises:
      DataError: it is damaged, or the name of its directory is that of other labels.
    """
    try:
        builder = open_builder(directory)
        train, val = (TfdsSource(builder, split) for split in SPLITS)
        metadata = dict(builder.info.metadata)
        ids, names, fingerprint = (metadata[key] for key in ("class_ids", "class_names", "fingerprint"))
        ending = config_name("", ids, metadata.get("raw_short_side", 0))
        labels = builder.info.features["label"].names
    except Exception as error:  # whatever tfds and array_record make of damaged files
        raise damaged(directory, error) from error
    if not (labels == ids == sorted(ids) and directory.parent.name.endswith(ending)):
        raise DataError(f"{directory} holds other labels or pixels than its name says; delete it, and prepare it again")
    return Dataset(
        train=train,
        val=val,
        class_ids=tuple(ids),
        class_names=tuple(names),
        find_fingerprint=lambda: fingerprint,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def open_folder(data_dir: str | Path, splits: Sequence[str] = SPLITS) -> Dataset:
    """The images under data_dir/train/<class>/ and data_dir/val/<class>/, at any depth; labels are sorted names.

    What is an image is `finding.why_not`'s to say.

    Raises:
      DataError: a folder is missing or cannot be listed, or train and val have different classes.
    """
    root = absolute(data_dir)
    classes = {}
    for split in splits:
        if not (root / split).is_dir():
            needed = " and ".join(f"{split}/<class>/" for split in splits)
            raise DataError(f"{root} has no folder {split!r}; it needs {needed} with images")
        try:
            entries = [entry for entry in os.scandir(root / split) if entry.is_dir()]
        except OSError as error:
            raise DataError(f"cannot list {root / split}: {error.strerror}") from error
        classes[split] = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    names = classes[splits[0]]
    if not names:
        raise DataError(f"{root / splits[0]} has no class folders; put each class's images into a folder of its own")
    if names != classes[splits[-1]]:
        odd = sorted(set(names) ^ set(classes["val"]))
        where = "train" if odd[0] in names else "val"
        raise DataError(
            f"train and val in {root} have different classes: {odd[0]!r} is only in {where}; make them equal"
        )
    sources = {split: FolderSource(root / split, names) for split in splits}
    passed_over = PassedOver()
    for source in sources.values():
        passed_over.extend(source.passed_over)
    return Dataset(
        train=sources.get("train"),
        val=sources.get("val"),
        class_ids=tuple(names),
        class_names=class_lists.class_names(names),
        find_fingerprint=lambda: hash_of(f"{split} {line}" for split in splits for line in sources[split].listing()),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        passed_over=passed_over.text(),
    )


def _open_root(data_dir: str | Path) -> Path | epath.Path:
    """A data_dir as an absolute path, an `epath.Path` if it is remote; ConfigError for a name that cannot be."""
    if is_remote(data_dir):
        return open_path(data_dir)
    try:
        os.lstat(absolute(data_dir))
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):  # what is missing or closed is said by who needs it
            raise ConfigError(f"cannot use data_dir {data_dir}: {first_line(error)}; give another") from error
    return absolute(data_dir)


def _local(root: Path | epath.Path, directory: Path | epath.Path) -> Path:
    """The local path of a directory below a data_dir; a remote one is copied."""
    return mirror.local_copy(root, directory.relative_to(root)) if is_remote(root) else Path(directory)


def _open_folder_dataset(
    root: Path | epath.Path, classes: str, splits: Sequence[str], raw_short_side: int, of_run: bool
) -> Dataset:
    there = prepared(root, "folder")
    if found := [path for path in there if raw_short_side_of(path) == raw_short_side]:
        return open_prepared(_local(root, _choose_folder(root, found, classes, of_run)))
    if raw_short_side or (there and not (root / splits[0]).is_dir()):
        raise not_prepared(root, "folder", "", raw_short_side, there, of_run)
    if is_remote(root):
        folders = [_local(root, root / split) for split in splits]
        root = folders[0].parent
    return open_folder(root, splits)


def _choose_folder(
    root: Path | epath.Path, found: Sequence[Path | epath.Path], name: str, of_run: bool
) -> Path | epath.Path:
    """The one of the prepared class folders that has this name, or the only one."""
    chosen = [path for path in found if name in ("", path.parent.name, called(path))]
    if len(chosen) != 1:
        names = ", ".join(path.parent.name for path in found)
        option = "--classes" if of_run else "--config.classes"
        raise ConfigError(f"{root} holds these prepared folders: {names}; name one of them with {option}")
    return chosen[0]


def _open_digits(root: Path | epath.Path) -> Dataset:
    from stce_jax.data import digits  # here, for it imports tfds

    if is_remote(root) and not is_complete(root / "digits" / VERSION):
        root = default_data_dir()  # they can be made anywhere; a remote data_dir is only written to by `stce prepare`
    if is_remote(root):
        return digits.open_digits(_local(root, root / "digits" / VERSION))
    return digits.open_digits(digits.prepare_digits(Path(root)))
