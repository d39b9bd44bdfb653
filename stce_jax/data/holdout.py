"""A part of the training images laid aside for choosing, so that no choice is made on test images.

Which images are held out depends on the data set and the share alone, not on a run's seed: all runs of a comparison
are trained and judged on the same ones.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from stce_jax.data.dataset import Dataset, hash_of
from stce_jax.data.labels import labels_of
from stce_jax.data.records import Record, Source
from stce_jax.errors import DataError, check_range, shown

HOLDOUT = "holdout"  # what `stce evaluate --split` calls the part
LARGEST_SHARE = 0.9
_SEED = "stce holdout 1"  # another one would be another part; it is no option, so that all runs share the part


class Part:
    """Some images of a source, by their indices, in the source's order, with their labels."""

    def __init__(self, source: Source, indices: Int[np.ndarray, "m"], labels: Int[np.ndarray, "m ..."]) -> None:
        self._source, self._indices, self._labels = source, indices, labels
        self.label_shape = labels.shape[1:]

    def __len__(self) -> int:
        return len(self._indices)

    def name(self, index: int) -> str:
        return self._source.name(int(self._indices[index]))

    def __getitem__(self, index: int) -> Record:
        return self._source[int(self._indices[index])]

    def labels(self) -> Int[np.ndarray, "m ..."]:
        """The label of each image; nothing is read for them."""
        return self._labels


def check_options(*, holdout: float) -> None:
    """Raises ConfigError for a share that cannot be held out."""
    check_range("config.holdout", holdout, 0, LARGEST_SHARE)


def hold_out(dataset: Dataset, share: float) -> Dataset:
    """The dataset with a share of each class's training images in the place of `val`, and the rest as `train`.

    Of a class with n training images, `share * n` are held out, rounded to the nearest whole number, but at least one,
    and at least one stays. They come in their order in the data set; a smaller share's are among a larger one's.
    Images with several labels are drawn from all, whatever their labels.

    Args:
      dataset: opened with its training images; others that were opened are left alone and not read.
      share: 0..0.9; 0 gives the dataset as it is.

    Raises:
      DataError: a class has a single training image, none of several labels is held out, or labels cannot be read.
    """
    if not share:
        return dataset
    source = dataset.train
    assert source is not None, "the training images were not asked for"
    labels = labels_of(dataset)
    if labels.ndim == 1:
        held = held_out(labels, dataset.class_ids, share)
    else:
        held = held_out(np.zeros(len(labels), np.int64), ("",), share)
        if not labels[held].any():
            raise DataError("no image that is held out has a label; hold out more, config.holdout")

    def find_fingerprint() -> str:
        return hash_of([dataset.fingerprint, f"held out: {share!r}, {int(held.sum())} of {len(held)}"])

    return dataclasses.replace(
        dataset,
        train=Part(source, np.flatnonzero(~held), labels[~held]),
        val=Part(source, np.flatnonzero(held), labels[held]),
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
