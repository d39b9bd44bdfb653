"""Datasets by name: where their images are, what their classes are called, how their pixels are normalised.

A dataset's splits are random-access sources of records {"image": encoded bytes, "label": int, "name": str}; the name
says in an error message which image was meant.
"""

import contextlib
import dataclasses
import fcntl
import io
import os
import shutil
import tempfile
from pathlib import Path

from stce_jax.errors import ConfigError, DataError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Of the digits' 1,437 training images.
DIGITS_MEAN, DIGITS_STD = (0.305, 0.305, 0.305), (0.376, 0.376, 0.376)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
SPLITS = ("train", "val")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An opened dataset.

    Attributes:
      train, val: sources of records, indexed 0..len - 1.
      class_names: the classes in the order of their labels.
      mean, std: of the pixels scaled to 0..1, a number a channel (red, green, blue).
    """

    train: "FolderSource | TfdsSource"
    val: "FolderSource | TfdsSource"
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def open_dataset(name, data_dir=""):
    """Opens a dataset, preparing it first if it can be made here.

    Args:
      name: "digits" (made from scikit-learn at first use, under a lock) or "folder".
      data_dir: for "digits" the directory that holds prepared datasets, by default the user's data directory; for
        "folder" the directory with train/<class>/ and val/<class>/.

    Raises:
      ConfigError: an unknown name, or "folder" without a data_dir.
      DataError: the images are missing, a class is empty, or train and val have different classes.
    """
    if name == "digits":
        return _open_digits(_absolute(data_dir or default_data_dir()))
    if name == "folder":
        if not data_dir:
            raise ConfigError('dataset "folder" needs --data_dir=DIR, a directory with train/<class>/ and val/<class>/')
        return open_folder(data_dir)
    raise ConfigError(f"there is no dataset {name!r}; the datasets are digits, folder")


def check_class_names(dataset, class_names):
    """Refuses a dataset whose classes are not those a model was trained on."""
    if dataset.class_names != tuple(class_names):
        odd = sorted(set(dataset.class_names) ^ set(class_names)) or ["their order"]
        raise DataError(
            f"the dataset's classes are not the run's: {odd[0]!r} differs; give the --data_dir it was trained on"
        )


def default_data_dir():
    """The user's data directory: $XDG_DATA_HOME/stce_jax, or ~/.local/share/stce_jax."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "stce_jax"


def open_folder(data_dir):
    """The images under data_dir/train/<class>/ and data_dir/val/<class>/, at any depth; labels are sorted names."""
    root = _absolute(data_dir)
    classes = {}
    for split in SPLITS:
        if not (root / split).is_dir():
            raise DataError(f"{root} has no folder {split!r}; it needs train/<class>/ and val/<class>/ with images")
        try:
            entries = [entry for entry in os.scandir(root / split) if entry.is_dir()]
        except OSError as error:
            raise DataError(f"cannot list {root / split}: {error.strerror}") from error
        classes[split] = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    names = classes["train"]
    if not names:
        raise DataError(f"{root / 'train'} has no class folders; put each class's images into a folder of its own")
    if names != classes["val"]:
        odd = sorted(set(names) ^ set(classes["val"]))
        where = "train" if odd[0] in names else "val"
        raise DataError(
            f"train and val in {root} have different classes: {odd[0]!r} is in {where} alone; make them equal"
        )
    sources = {split: FolderSource(root / split, names) for split in SPLITS}
    return Dataset(**sources, class_names=tuple(names), mean=IMAGENET_MEAN, std=IMAGENET_STD)


class FolderSource:
    """The image files of one split's class folders, classes in the given order, files sorted by path.

    Links are followed; hidden files, such as the "._" ones that macOS leaves beside images, are passed over.
    """

    def __init__(self, root, class_names):
        self._files = []
        for label, name in enumerate(class_names):
            files = sorted(
                os.path.join(folder, file)
                for folder, _, files in os.walk(root / name, followlinks=True)
                for file in files
                if file.lower().endswith(IMAGE_SUFFIXES) and not file.startswith(".")
            )
            if not files:
                raise DataError(f"class folder {root / name} holds no image; add some, or remove the folder")
            self._files += [(path, label) for path in files]

    def __len__(self):
        return len(self._files)

    def __getitem__(self, index):
        path, label = self._files[index]
        try:
            return {"image": Path(path).read_bytes(), "label": label, "name": path}
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error


class TfdsSource:
    """One split of a prepared tfds dataset, images left encoded."""

    def __init__(self, builder, split):
        import tensorflow_datasets as tfds

        self._label = f"{builder.info.full_name} {split}"
        self._directory = builder.data_path
        self._source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        try:
            record = self._source[index]
        except Exception as error:  # whatever array_record makes of damaged files
            raise _damaged(self._directory, error) from error
        return {"image": record["image"], "label": int(record["label"]), "name": f"image {index} of {self._label}"}


def _open_digits(data_dir):
    import tensorflow_datasets as tfds

    directory = data_dir / "digits" / "1.0.0"
    if not directory.is_dir():
        _prepare_digits(data_dir)
    try:
        builder = tfds.builder_from_directory(directory)
        sources = {split: TfdsSource(builder, split) for split in SPLITS}
    except Exception as error:  # whatever tfds and array_record make of damaged files
        raise _damaged(directory, error) from error
    names = tuple(builder.info.features["label"].names)
    return Dataset(**sources, class_names=names, mean=DIGITS_MEAN, std=DIGITS_STD)


def _prepare_digits(data_dir):
    """Writes the digits below `data_dir`; processes that come at the same time wait for the first."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with open(data_dir / "digits.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (data_dir / "digits" / "1.0.0").is_dir():
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


def _absolute(path):
    return Path(os.path.expanduser(path)).absolute()


def _damaged(directory, error):
    cause = next(iter(str(error).splitlines()), type(error).__name__)
    return DataError(f"cannot read {directory}: {cause}; delete it, and it is made anew")
