"""Random-access sources of images with their labels: class folders, and what `stce prepare` wrote.

Shape letters: K classes, n images.
"""

import array
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np
from etils import epath
from jaxtyping import Int, UInt8

from stce_jax.data.decode import MAX_BYTES
from stce_jax.data.finding import PassedOver, find_images
from stce_jax.errors import DataError
from stce_jax.paths import read_regular

_THREADS, _AT_A_TIME = 16, 1000  # that ask for the sizes of files, and how many each asks for in turn


class Record(TypedDict):
    """One image: its encoded bytes, its label, and what to call it in an error message.

    Images with several labels have 1 for each class that is among them, else 0. Their source has a `label_shape`, (K,).
    """

    image: bytes
    label: int | UInt8[np.ndarray, "K"]
    name: str


class Source(Protocol):
    """The images of one split, indexed 0..len - 1. `name` tells which image is meant before anything is read."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def name(self, index: int) -> str: ...


class FolderSource:
    """The image files of one split's class folders, classes in the given order, files sorted by path.

    Of each file a few bytes are kept, its path below the split's folder and its label: a million files take 40 MB, here
    and in each process that loads them.

    Attributes:
      passed_over: the files beside them.

    Raises:
      DataError: a folder cannot be listed, or holds no image.
    """

    def __init__(self, root: Path, class_names: Sequence[str]) -> None:
        self._root = os.fspath(root)
        self._paths = bytearray()  # below the root, one after the other
        self._ends = array.array("Q", [0])  # where the path before each one ends
        counts = []
        self.passed_over = PassedOver()
        for name in class_names:
            beside = PassedOver()
            try:
                files = find_images(root / name, beside)
            except OSError as error:
                raise DataError(f"cannot list {error.filename}: {error.strerror}; make it readable") from error
            if not files:
                also = f" ({beside.text()})" if beside.count else ""
                raise DataError(f"class folder {root / name} holds no image{also}; add some, or remove the folder")
            self.passed_over.extend(beside)
            counts.append(len(files))
            for path in files:
                self._paths += os.fsencode(path[len(self._root) + 1 :])
                self._ends.append(len(self._paths))
        self._labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)

    def __len__(self) -> int:
        return len(self._labels)

    def name(self, index: int) -> str:
        return f"{self._root}/{self._below(index)}"

    def __getitem__(self, index: int) -> Record:
        return read_record(self.name(index), int(self._labels[index]))

    def labels(self) -> Int[np.ndarray, "n"]:
        """The label of each image; nothing is read for them."""
        return self._labels

    def listing(self) -> Iterator[str]:
        """Yields label, path and size of each file: enough to notice that something has changed."""
        starts = range(0, len(self), _AT_A_TIME)
        with ThreadPoolExecutor(_THREADS) as pool:  # a file system in a network answers many at a time
            for start, sizes in zip(starts, pool.map(self._sizes, starts), strict=True):
                for index, size in enumerate(sizes, start):
                    yield f"{self._labels[index]} {self._below(index)} {size}"

    def _below(self, index: int) -> str:
        """The path of an image below the root; IndexError for one that is not there."""
        index = range(len(self))[index]
        return os.fsdecode(bytes(self._paths[self._ends[index] : self._ends[index + 1]]))

    def _sizes(self, start: int) -> Sequence[int]:
        """Bytes of the files from one on, _AT_A_TIME of them."""
        sizes = array.array("Q")
        for index in range(start, min(start + _AT_A_TIME, len(self))):
            sizes.append(size_of(self.name(index)))
        return sizes


def read_record(path: str, label: int | UInt8[np.ndarray, "K"]) -> Record:
    """The record of an image file; raises DataError if it cannot be read."""
    try:
        return {"image": read_regular(path, MAX_BYTES), "label": label, "name": path}
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def size_of(path: str) -> int:
    """Bytes of a file; raises DataError if it is gone."""
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


class TfdsSource:
    """One split of a prepared tfds dataset, images left encoded.

    Args:
      builder: a tfds DatasetBuilder of a prepared dataset.
      split: "train" or "val".
    """

    def __init__(self, builder: Any, split: str) -> None:
        import tensorflow_datasets as tfds

        self._label = f"{builder.info.full_name} {split}"
        self._directory = builder.data_path
        self._source = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        self._shards = builder.info.splits[split]

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        return f"image {index} of {self._label}"

    def __getitem__(self, index: int) -> Record:
        try:
            stored = self._source[index]
            if not stored:  # array_record returns nothing where a file is cut off
                raise ValueError(f"record {index} is empty")
            record = _parsed(stored)
        except Exception as error:  # whatever array_record makes of damaged files
            raise damaged(self._directory, error) from error
        name = self.name(index)
        if "file_name" in record:
            name = f"{record['file_name'].decode(errors='replace')}, {name}"
        return {"image": record["image"], "label": record["label"], "name": name}

    def check_shards(self) -> None:
        """Counts the records of every shard and reads the last: DataError where a file is missing or cut off.

        One file is open at a time; as a source of records, each stays open.
        """
        from array_record.python.array_record_module import ArrayRecordReader

        for path, length in zip(self._shards.filepaths, self._shards.shard_lengths, strict=True):
            try:
                reader = ArrayRecordReader(os.fspath(path))
                try:
                    if reader.num_records() != length or (length and not reader.read([length - 1])[0]):
                        raise ValueError(f"{path.name} is cut off")
                finally:
                    reader.close()
            except Exception as error:  # whatever array_record makes of damaged files
                raise damaged(self._directory, error) from error


def _parsed(stored: bytes) -> dict[str, Any]:
    """The features of a record, one value each. For raw pixels, tfds's own parser takes as long as reading them."""
    from tensorflow_datasets.proto import tf_example_pb2

    record = {}
    for name, feature in tf_example_pb2.Example.FromString(stored).features.feature.items():
        (record[name],) = getattr(feature, feature.WhichOneof("kind")).value
    return record


def damaged(directory: str | Path | epath.Path, error: object) -> DataError:
    """The error for prepared files that cannot be read."""
    cause = next(iter(str(error).splitlines()), type(error).__name__)
    return DataError(f"cannot read {directory}: {cause}; delete it, and prepare it again")
