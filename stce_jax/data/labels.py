"""The labels of the training images, without the images: to hold some out, to weigh classes, to draw them evenly."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Int

from stce_jax.data.dataset import Dataset
from stce_jax.errors import ConfigError, DataError, shown
from stce_jax.paths import read_regular, user_directory, write_bytes

_THREADS = 8
_CHUNK = 256  # images whose labels a thread reads at a time


def class_counts(labels: Int[np.ndarray, "n"], class_ids: Sequence[str]) -> Int[np.ndarray, "K"]:
    """The number of training images of each class; raises DataError if a class has none."""
    counts = np.bincount(labels, minlength=len(class_ids))
    if not counts.all():
        name = class_ids[int(counts.argmin())]
        raise DataError(f"class {shown(name)} has no training image; add some, or leave the class away")
    return counts


def labels_of(dataset: Dataset) -> Int[np.ndarray, "n ..."]:
    """The label of each training image, or its labels, see `records.Record`.

    Class folders know them; prepared images are read once. Their labels are kept in the user's cache directory, a file
    for each data set; without such a directory they are read anew.
    """
    source = dataset.train
    assert source is not None
    if (known := getattr(source, "labels", None)) is not None:
        return np.asarray(known())
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
