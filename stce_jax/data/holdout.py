"""A part of the training images laid aside for choosing, so that no choice is made on test images.

Which images are held out depends on the data set and the share alone, not on a run's seed: all runs of a comparison
are trained and judged on the same ones.
"""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from stce_jax.data.dataset import Dataset, hash_of
from stce_jax.data.records import Record, Source
from stce_jax.errors import ConfigError, DataError, check_range, shown
from stce_jax.paths import read_regular, user_directory, write_bytes

HOLDOUT = "holdout"  # what `stce evaluate --split` calls the part
LARGEST_SHARE = 0.9
_SEED = "stce holdout 1"  # another one would be another part; it is no option, so that all runs share the part
_THREADS = 8
_CHUNK = 256  # images whose labels a thread reads at a time


class Part:
    """Some images of a source, by their indices, in the source's order."""

    def __init__(self, source: Source, indices: Int[np.ndarray, "m"]) -> None:
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def name(self, index: int) -> str:
        return self._source.name(int(self._indices[index]))

    def __getitem__(self, index: int) -> Record:
        return self._source[int(self._indices[index])]


def check_options(*, holdout: float) -> None:
    """Raises ConfigError for a share that cannot be held out."""
    check_range("config.holdout", holdout, 0, LARGEST_SHARE)


def hold_out(dataset: Dataset, share: float) -> Dataset:
    """The dataset with a share of each class's training images in the place of `val`, and the rest as `train`.

    Of a class with n training images, `share * n` are held out, rounded to the nearest whole number, but at least one,
    and at least one stays. They come in their order in the data set; a smaller share's are among a larger one's.

    Args:
      dataset: opened with its training images; others that were opened are left alone and not read.
      share: 0..0.9; 0 gives the dataset as it is.

    Raises:
      DataError: a class has a single training image, or labels cannot be read.
    """
    if not share:
        return dataset
    source = dataset.train
    assert source is not None, "the training images were not asked for"
    held = held_out(labels_of(dataset), dataset.class_ids, share)

    def find_fingerprint() -> str:
        return hash_of([dataset.fingerprint, f"held out: {share!r}, {int(held.sum())} of {len(held)}"])

    return dataclasses.replace(
        dataset,
        train=Part(source, np.flatnonzero(~held)),
        val=Part(source, np.flatnonzero(held)),
        find_fingerprint=find_fingerprint,
    )


def held_out(labels: Int[np.ndarray, "n"], class_ids: Sequence[str], share: float) -> Bool[np.ndarray, "n"]:
    """Whether each training image is held out, see `hold_out`. By hashes, which no version of NumPy changes."""
    held = np.zeros(len(labels), bool)
    for label, class_id in enumerate(class_ids):
        own = np.flatnonzero(labels == label)
        if len(own) < 2:
            raise DataError(
                f"class {shown(class_id)} has {len(own)} training image{'s' * (len(own) != 1)}, of which none can be "
                "held out; add some, or leave the class away"
            )
        name = class_id.encode(errors="surrogateescape")
        keys = [hashlib.sha256(b"%s\n%s\n%d" % (_SEED.encode(), name, place)).digest() for place in range(len(own))]
        count = min(max(int(share * len(own) + 0.5), 1), len(own) - 1)
        held[own[np.argsort(np.array(keys, dtype="S32"), kind="stable")[:count]]] = True
    return held


def labels_of(dataset: Dataset) -> Int[np.ndarray, "n"]:
    """The label of each training image. Class folders know them; prepared images are read once, and labels kept.

    They are kept in the user's cache directory, a file for each data set; without such a directory they are read anew.
    """
    source = dataset.train
    assert source is not None
    if (known := getattr(source, "labels", None)) is not None:
        return np.asarray(known(), np.int64)
    path = _cache_file(dataset)
    if path and (found := _cached(path, len(source), len(dataset.class_ids))) is not None:
        return found

    def read(start: int) -> list[int]:
        return [int(source[place]["label"]) for place in range(start, min(start + _CHUNK, len(source)))]

    with ThreadPoolExecutor(_THREADS) as pool:
        labels = np.array([label for part in pool.map(read, range(0, len(source), _CHUNK)) for label in part], np.int64)
    if path:
        try:
            os.makedirs(path.parent, exist_ok=True)
            write_bytes(path, labels.astype("<u4").tobytes())
        except OSError:
            pass  # a full or closed cache costs time alone
    return labels


def _cache_file(dataset: Dataset) -> Path | None:
    try:
        cache = user_directory("XDG_CACHE_HOME", ".cache", "a directory for caches")
    except ConfigError:
        return None
    # Hashed: the fingerprint of prepared images is what their files say, which may be anything.
    name = hashlib.sha256(dataset.fingerprint.encode(errors="surrogateescape")).hexdigest()
    return cache / "stce_jax" / "labels" / f"{name}.u4"


def _cached(path: Path, count: int, classes: int) -> Int[np.ndarray, "n"] | None:
    """The labels that a file holds; None if it is not there, or cannot be of these images."""
    try:
        data = read_regular(path, 4 * count)
    except (OSError, ValueError):
        return None
    labels = np.frombuffer(data[: len(data) // 4 * 4], "<u4").astype(np.int64)
    return labels if len(labels) == count and int(labels.max(initial=0)) < classes else None
