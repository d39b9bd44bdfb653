"""Writing data sets, and opening them, even a stranger's: nothing that they name is imported, or read elsewhere.

tfds imports whatever Python names stand in `features.json`. So that file, and the place of every other one, is checked
before tfds sees them.
"""

import contextlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath
from etils.epath import stat_utils

from stce_jax.data.places import INFO_FILE
from stce_jax.paths import read_regular

FEATURES_FILE = "features.json"
_CLASSES = "tensorflow_datasets.core.features."
_DICT = f"{_CLASSES}features_dict.FeaturesDict"
# All that `stce prepare` writes: name -> (kind of its content, class).
_KNOWN = {
    "image": ("image", f"{_CLASSES}image_feature.Image"),
    "label": ("class_label", f"{_CLASSES}class_label_feature.ClassLabel"),
    "file_name": ("text", f"{_CLASSES}text_feature.Text"),
}
_SHARD = re.compile(r".*\.array_record-\d{5}-of-\d{5}")
_MAX_BYTES = 256 * 2**20  # of a file that describes a data set; names of ten million files are not kept there


def open_builder(directory: Path) -> Any:
    """The tfds builder of a data set that `stce prepare` wrote, or of the digits.

    Raises:
      Exception: whatever tfds makes of damaged files. ValueError: a file says or is something that is never written.
    """
    import tensorflow_datasets as tfds

    sizes = _sizes(directory)
    for name, size in sizes.items():
        if size > _MAX_BYTES and not _SHARD.fullmatch(name):
            raise ValueError(f"{name} has {size:,} bytes, more than {_MAX_BYTES:,}")
    for name in (FEATURES_FILE, INFO_FILE):
        if name not in sizes:
            raise ValueError(f"{name} is missing")
    _check_features(read_regular(directory / FEATURES_FILE, _MAX_BYTES))
    builder = tfds.builder_from_directory(directory)
    if builder.info.file_format.value != "array_record":
        raise ValueError(f"{INFO_FILE} names files of another kind than array_record")
    for split in builder.info.splits.values():
        for path, length in zip(split.filepaths, split.shard_lengths, strict=True):
            if Path(path).parent != directory:
                raise ValueError(f"{INFO_FILE} names files outside of the directory")
            if not 0 <= length <= sizes.get(Path(path).name, 0):  # a record takes more than a byte
                raise ValueError(f"{Path(path).name} is missing, or too small for its {length:,} records")
    return builder


def write(builder: Any) -> None:
    """Has a tfds builder write its data set; nothing is downloaded."""
    with tempfile.TemporaryDirectory() as no_downloads, _owners_without_a_name():
        builder.download_and_prepare(download_dir=no_downloads)


@contextlib.contextmanager
def _owners_without_a_name() -> Iterator[None]:
    """While open, etils answers for files whose owner has no name, too: users of containers often have none.

    tfds asks for sizes only, and etils fails for want of the name.
    """
    kind: Any = type(getattr(epath.Path("/"), "_backend", None))
    if not hasattr(kind, "stat"):
        yield
        return
    ask = kind.stat

    def stat_of(backend: Any, path: Any) -> Any:
        try:
            return ask(backend, path)
        except KeyError:
            status = os.stat(path)
            return stat_utils.StatResult(
                is_directory=stat.S_ISDIR(status.st_mode),
                length=status.st_size,
                mtime=int(status.st_mtime),
                owner=str(status.st_uid),
                group=str(status.st_gid),
                mode=status.st_mode,
            )

    kind.stat = stat_of
    try:
        yield
    finally:
        kind.stat = ask


def _sizes(directory: Path) -> dict[str, int]:
    """{name: bytes} of the files in the directory, all of them regular."""
    sizes = {}
    with os.scandir(directory) as entries:
        for entry in entries:
            status = entry.stat()
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{entry.name} is no regular file")
            sizes[entry.name] = status.st_size
    return sizes


def _check_features(content: bytes) -> None:
    """Raises ValueError unless the features are among _KNOWN: tfds imports what others are called."""
    from google.protobuf import json_format
    from tensorflow_datasets.core.proto import feature_pb2

    described = json.loads(content)
    if not isinstance(described, dict) or "type" in described:  # an older form, in which classes nest without a schema
        raise ValueError(f"{FEATURES_FILE} is of another form than is written here")
    found = json_format.ParseDict(described, feature_pb2.Feature())
    features = found.features_dict.features
    known = (found.WhichOneof("content"), found.python_class_name) == ("features_dict", _DICT)
    for name, feature in features.items():
        known &= _KNOWN.get(name) == (feature.WhichOneof("content"), feature.python_class_name)
    if not known:
        raise ValueError(f"{FEATURES_FILE} names other features than are written here; nothing of it is opened")
