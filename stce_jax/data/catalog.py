"""Datasets by name: where their images are, what their classes are called, how their pixels are normalised.

A dataset's splits are random-access sources of records {"image": encoded bytes, "label": int, "name": str}; the name
says in an error message which image was meant. `name(index)` says it, too, before anything is read.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from stce_jax.data import class_lists, mirror
from stce_jax.data.places import (
    VERSION,
    called,
    config_name,
    find_prepared,
    is_complete,
    not_prepared,
    prepared,
    raw_short_side_of,
)
from stce_jax.data.records import FolderSource, TfdsSource, damaged
from stce_jax.errors import ConfigError, DataError, check_choice, check_range
from stce_jax.paths import absolute, is_remote, open_path

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Of the digits' 1,437 training images.
DIGITS_MEAN, DIGITS_STD = (0.305, 0.305, 0.305), (0.376, 0.376, 0.376)
SPLITS = ("train", "val")
DATASETS = ("digits", "folder", "imagenet100", "imagenet2012")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An opened dataset.

    Attributes:
      train, val: sources of records, indexed 0..len - 1; None for one of class folders that was not asked for.
      class_ids: what identifies the classes, in the order of their labels: WordNet ids, or names of folders.
      class_names: what they are called: ImageNet's words where an id is one of its 1000, otherwise the id.
      find_fingerprint: function that returns `fingerprint`, which may take a look at every image.
      mean, std: of the pixels scaled to 0..1, a number a channel (red, green, blue).
    """

    train: FolderSource | TfdsSource | None
    val: FolderSource | TfdsSource | None
    class_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    find_fingerprint: Callable[[], str]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @functools.cached_property
    def fingerprint(self):
        """Stands for the classes and images; the same images, labels and order have the same one."""
        return self.find_fingerprint()


def open_dataset(name, data_dir="", classes="", splits=SPLITS, raw_short_side=0):
    """Opens a dataset; the digits are prepared first if they are not there.

    Args:
      name: "digits" (made from scikit-learn at first use, under a lock), "folder", "imagenet100" or "imagenet2012".
      data_dir: the directory that holds prepared datasets, by default the user's data directory; for "folder" that, or
        a directory with train/<class>/ and val/<class>/. What is needed of a remote one ("gs://...") is copied to the
        local disk, see `mirror`; digits that are not there are prepared in the user's data directory.
      classes: for "imagenet100" the list of classes, see `class_lists.load_class_ids`, by default "kaggle", or the
        name it was prepared under; for "folder" the name of the prepared dataset, if data_dir holds several.
      splits: those that are needed; of class folders the others need not be there.
      raw_short_side: 0 for images as they were, or the short side, in pixels, that raw ones were prepared with. The one
        kind is never given for the other.

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
    if name == "folder":
        if not data_dir:
            raise ConfigError(
                'dataset "folder" needs --data_dir=DIR, a directory with train/<class>/ and val/<class>/, or the one '
                "that `stce prepare folder` wrote to"
            )
        root = _open_root(data_dir)
        there = prepared(root, "folder")
        if found := [path for path in there if raw_short_side_of(path) == raw_short_side]:
            return open_prepared(_local(root, _choose_folder(root, found, classes)))
        if raw_short_side or (there and not (root / splits[0]).is_dir()):
            raise not_prepared(root, "folder", "", raw_short_side, there)
        if is_remote(root):
            folders = [_local(root, root / split) for split in splits]
            root = folders[0].parent
        return open_folder(root, splits)
    root = _open_root(data_dir or default_data_dir())
    if name == "digits":
        return _open_digits(root)
    classes = "all" if name == "imagenet2012" else classes or "kaggle"
    found = find_prepared(root, name, classes, raw_short_side)
    if found is None:
        others = {raw_short_side_of(path) for path in prepared(root, name)} - {raw_short_side}
        others = [find_prepared(root, name, classes, other) for other in others]
        raise not_prepared(root, name, classes, raw_short_side, [other for other in others if other])
    return open_prepared(_local(root, found))


def check_class_names(dataset, class_ids):
    """Refuses a dataset whose classes, by their ids, are not those a model was trained on."""
    if dataset.class_ids != tuple(class_ids):
        odd = sorted(set(dataset.class_ids) ^ set(class_ids)) or ["their order"]
        raise DataError(
            f"the dataset's classes are not the run's: {odd[0]!r} differs; give the --data_dir it was trained on"
        )


def default_data_dir():
    """The user's data directory: $XDG_DATA_HOME/stce_jax, or ~/.local/share/stce_jax."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "stce_jax"


def open_prepared(directory):
    """Opens what `stce prepare` wrote; refuses it unless the name of its directory is that of its labels."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(directory)
        sources = {split: TfdsSource(builder, split) for split in SPLITS}
        metadata = dict(builder.info.metadata)
        ids, names, fingerprint = (metadata[key] for key in ("class_ids", "class_names", "fingerprint"))
        ending = config_name("", ids, metadata.get("raw_short_side", 0))
        labels = builder.info.features["label"].names
    except Exception as error:  # whatever tfds and array_record make of damaged files
        raise damaged(directory, error) from error
    if not (labels == ids == sorted(ids) and directory.parent.name.endswith(ending)):
        raise DataError(f"{directory} holds other labels or pixels than its name says; delete it, and prepare it anew")
    return Dataset(
        **sources,
        class_ids=tuple(ids),
        class_names=tuple(names),
        find_fingerprint=lambda: fingerprint,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def open_folder(data_dir, splits=SPLITS):
    """The images under data_dir/train/<class>/ and data_dir/val/<class>/, at any depth; labels are sorted names."""
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
            f"train and val in {root} have different classes: {odd[0]!r} is in {where} alone; make them equal"
        )
    sources = {split: FolderSource(root / split, names) for split in splits}
    return Dataset(
        **dict.fromkeys(SPLITS) | sources,
        class_ids=tuple(names),
        class_names=class_lists.class_names(names),
        find_fingerprint=lambda: _hash_of(f"{split} {line}" for split in splits for line in sources[split].listing()),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def _open_root(data_dir):
    """A data_dir as an absolute path, an `epath.Path` if it is remote."""
    return open_path(data_dir) if is_remote(data_dir) else absolute(data_dir)


def _local(root, directory):
    """The local path of a directory below a data_dir, which is copied if it is remote."""
    return mirror.local_copy(root, directory.relative_to(root)) if is_remote(root) else directory


def _open_digits(data_dir):
    import tensorflow_datasets as tfds

    directory = data_dir / "digits" / VERSION
    if is_remote(data_dir) and not is_complete(directory):
        data_dir = default_data_dir()  # anybody can make them; nothing is written to a remote data_dir unasked
        directory = data_dir / "digits" / VERSION
    if is_remote(data_dir):
        directory = _local(data_dir, directory)
    elif not directory.is_dir():
        _prepare_digits(data_dir)
    try:
        builder = tfds.builder_from_directory(directory)
        sources = {split: TfdsSource(builder, split) for split in SPLITS}
    except Exception as error:  # whatever tfds and array_record make of damaged files
        raise damaged(directory, error) from error
    names = tuple(builder.info.features["label"].names)

    def find_fingerprint():
        records = (sources[split][index] for split in SPLITS for index in range(len(sources[split])))
        return _hash_of(f"{record['label']} {hashlib.sha256(record['image']).hexdigest()}" for record in records)

    return Dataset(
        **sources,
        class_ids=names,
        class_names=names,
        find_fingerprint=find_fingerprint,
        mean=DIGITS_MEAN,
        std=DIGITS_STD,
    )


def _prepare_digits(data_dir):
    """Writes the digits below `data_dir`; processes that come at the same time wait for the first."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with open(data_dir / "digits.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (data_dir / "digits" / VERSION).is_dir():
                return
            from stce_jax.data.digits import Digits

            for leftover in (data_dir / "digits").glob("incomplete*"):  # of a process killed while preparing
                shutil.rmtree(leftover)
            # tfds announces a download that never happens, and keeps a folder for it.
            with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as no_downloads:
                builder = Digits(data_dir=data_dir, file_format="array_record")
                builder.download_and_prepare(download_dir=no_downloads)
    except OSError as error:
        raise DataError(
            f"cannot prepare the digits in {data_dir}: {error.strerror}; give another --data_dir"
        ) from error


def _choose_folder(root, found, name):
    """The one of the prepared datasets of class folders that is called so, or the only one."""
    chosen = [path for path in found if name in ("", path.parent.name, called(path))]
    if len(chosen) != 1:
        names = ", ".join(path.parent.name for path in found)
        raise ConfigError(f"{root} holds these prepared folders: {names}; name one of them with --config.classes")
    return chosen[0]


def _hash_of(lines):
    total = hashlib.sha256()
    for line in lines:
        total.update(line.encode(errors="surrogateescape") + b"\n")
    return total.hexdigest()


def check_options(*, dataset: str, raw_short_side: int) -> None:
    """Raises ConfigError if a config's options of datasets cannot work, whatever is there."""
    check_choice("config.dataset", dataset, DATASETS)
    check_range("config.raw_short_side", raw_short_side, 0)
