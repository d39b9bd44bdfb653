"""Real photographs of STCE_TEST_DATA, or noise where it is not set: tests run without it, too."""

import os
import zipfile
from pathlib import Path

import numpy as np

from stce_jax.data.decode import decode_image


def real_images(count):
    """uint8 images [H, W, 3] of different sizes."""
    folder = os.environ.get("STCE_TEST_DATA")
    if not folder:
        rng = np.random.default_rng(3)
        return [rng.integers(0, 256, (60 + 7 * number, 90, 3), np.uint8) for number in range(count)]
    with zipfile.ZipFile(Path(folder) / "data" / "imagenet_samples.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".JPEG")][: 9 * count : 9]
        return [decode_image(archive.read(name), name) for name in names]
