"""scikit-learn's handwritten digits as a tfds dataset: real images that need no download.

1,797 grey 8x8 scans of the digits 0-9 (Alpaydin and Kaynak 1998, the test part of UCI's optical digits), split by class
into 1,437 for training and 360 for testing.
"""

import contextlib
import hashlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from stce_jax.data.builders import open_builder, write
from stce_jax.data.dataset import SPLITS, Dataset, hash_of
from stce_jax.data.locks import locked
from stce_jax.data.places import VERSION
from stce_jax.data.records import TfdsSource, damaged
from stce_jax.errors import DataError
from stce_jax.paths import first_line, remedy

MEAN, STD = (0.305, 0.305, 0.305), (0.376, 0.376, 0.376)  # of the training images


class Digits(tfds.core.ShardBasedBuilder):
    """Writes the digits as 8x8 PNGs; their 17 grey levels are spread over 0..255."""

    VERSION = tfds.core.Version(VERSION)
    name = "digits"

    def _info(self) -> Any:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                }
            ),
            supervised_keys=("image", "label"),
            description=__doc__,
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list]:
        del dl_manager  # nothing to download
        return {split: [lambda split=split: _examples(split)] for split in SPLITS}


def _examples(split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (key, example) of one split; the split is drawn class by class with a fixed seed."""
    from sklearn.datasets import load_digits  # here, for scikit-learn takes a second to import and is needed once
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    everything = np.arange(len(digits.target))
    train, val = train_test_split(everything, test_size=360, stratify=digits.target, random_state=0)
    for index in train if split == "train" else val:
        grey = np.round(digits.images[index] * (255 / 16)).astype(np.uint8)  # [8, 8]
        png = io.BytesIO()
        Image.fromarray(grey).convert("RGB").save(png, format="PNG")
        png.seek(0)  # tfds silently stores an unrewound buffer as an empty image
        yield int(index), {"image": png, "label": int(digits.target[index])}


def prepare_digits(data_dir: Path) -> Path:
    """Writes the digits below `data_dir` unless they are there; processes that come at the same time wait.

    Returns:
      Their directory.

    Raises:
      DataError: it cannot be written.
    """
    directory = data_dir / "digits" / VERSION
    if directory.is_dir():
        return directory
    try:
        with locked(data_dir / "digits.lock"):
            if not directory.is_dir():
                _write_digits(data_dir)
    except (OSError, RuntimeError) as error:  # array_record has its own for a full disk
        advice = remedy(error, "give another --data_dir")
        raise DataError(f"cannot prepare the digits in {data_dir}: {first_line(error)}; {advice}") from error
    return directory


def _write_digits(data_dir: Path) -> None:
    for leftover in (data_dir / "digits").glob("incomplete*"):  # of a process killed while preparing
        shutil.rmtree(leftover)
    # tfds announces a download that never happens.
    with contextlib.redirect_stdout(io.StringIO()):
        write(Digits(data_dir=data_dir, file_format="array_record"))


def open_digits(directory: Path) -> Dataset:
    """Opens what `prepare_digits` wrote; DataError if it is damaged."""
    try:
        builder = open_builder(directory)
        train, val = (TfdsSource(builder, split) for split in SPLITS)
    except Exception as error:  # whatever tfds and array_record make of damaged files
        raise damaged(directory, error) from error
    names = tuple(builder.info.features["label"].names)

    def find_fingerprint() -> str:
        records = (source[index] for source in (train, val) for index in range(len(source)))
        return hash_of(f"{record['label']} {hashlib.sha256(record['image']).hexdigest()}" for record in records)

    return Dataset(
        train=train,
        val=val,
        class_ids=names,
        class_names=names,
        find_fingerprint=find_fingerprint,
        mean=MEAN,
        std=STD,
    )
