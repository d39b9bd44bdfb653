"""scikit-learn's handwritten digits as a tfds dataset: real images that need no download.

1,797 grey 8x8 scans of the digits 0-9 (Alpaydin and Kaynak 1998, the test part of UCI's optical digits), split by class
into 1,437 for training and 360 for testing.
"""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from stce_jax.data.catalog import SPLITS, VERSION


class Digits(tfds.core.ShardBasedBuilder):
    """Writes the digits as 8x8 PNGs; their 17 grey levels are spread over 0..255."""

    VERSION = tfds.core.Version(VERSION)
    name = "digits"

    def _info(self):
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

    def _shard_iterators_per_split(self, dl_manager):
        del dl_manager  # nothing to download
        return {split: [lambda split=split: _examples(split)] for split in SPLITS}


def _examples(split):
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
        png.seek(0)  # tfds stores an unrewound buffer as an empty image, without a word
        yield int(index), {"image": png, "label": int(digits.target[index])}
