"""The random streams of the augmentation never change: neither by a new part, nor from one version to the next.

`augment_streams.npz` holds what version 0.1.0 made of eight images at step 3 with seed 7.
"""

from pathlib import Path

import jax
import numpy as np
import pytest

from stce_jax.recipe import augment

pytestmark = pytest.mark.usefixtures("quick_compilation")

STORED = np.load(Path(__file__).with_suffix("").with_name("augment_streams.npz"))
CLASSES, KEY, STEP = 5, 7, 3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OFF = {
    "flip": 0.0,
    "shift": 0,
    "rand_augment": "",
    "three_augment": False,
    "color_jitter": 0.0,
    "erase": 0.0,
    "erase_area": (0.02, 1 / 3),
    "erase_ratio": (0.3, 3.3),
    "mixup": 0.0,
    "cutmix": 0.0,
    "switch_probability": 0.5,
    "label_smoothing": 0.0,
}
# The paper's recipe is DeiT's but for the mixing.
DEIT = OFF | {
    "flip": 0.5,
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "erase": 0.25,
    "mixup": 0.8,
    "cutmix": 1.0,
    "label_smoothing": 0.1,
}
EVERY_SINGLE = DEIT | {"shift": 1, "three_augment": True, "color_jitter": 0.3, "erase": 0.5, "mixup": 0, "cutmix": 0}
CONFIGS = {
    "paper": DEIT | {"mixup": 1.0, "cutmix": 0.8},
    "deit": DEIT,
    "deit3": OFF | {"flip": 0.5, "three_augment": True, "color_jitter": 0.3, "mixup": 0.8, "cutmix": 1.0},
    "shift and mixup": OFF | {"shift": 1, "mixup": 0.2, "label_smoothing": 0.1},
    "every single part": EVERY_SINGLE,
    "everything": EVERY_SINGLE | {"mixup": 1.0, "cutmix": 0.8},
}


def run(options):
    """(images, targets) of the stored images under these options."""
    function = jax.jit(augment.make_augment(CLASSES, mean=MEAN, std=STD, **options))
    return jax.device_get(function(jax.random.key(KEY), STEP, STORED["images"], STORED["labels"]))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_streams_are_those_of_version_0_1(name):
    images, targets = run(CONFIGS[name])
    # Every other draw is a different pixel, hundreds of times as far off; compilers round the last bit differently.
    np.testing.assert_allclose(images, STORED[f"{name}/images"], atol=1e-6, err_msg=f"images of {name!r}")
    np.testing.assert_allclose(targets, STORED[f"{name}/targets"], atol=1e-6, err_msg=f"targets of {name!r}")
