"""The random streams of the augmentation never change: neither by a new part, nor from one version to the next.

`augment_streams.npz` holds what version 0.1.0 made of eight images at step 3 with seed 7.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stce_jax.recipe import augment, parts
from stce_jax.recipe.mixing import place_in_batch

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
# The paper's recipe is the same with other alphas.
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
    "deit": DEIT,
    "deit3": OFF | {"flip": 0.5, "three_augment": True, "color_jitter": 0.3, "mixup": 0.8, "cutmix": 1.0},
    "shift and mixup": OFF | {"shift": 1, "mixup": 0.2, "label_smoothing": 0.1},
    "everything": EVERY_SINGLE | {"mixup": 1.0, "cutmix": 0.8},
}


def run(options):
    """(images, targets) of the stored images under these options, in the order of the stream."""
    function = jax.jit(augment.make_augment(CLASSES, mean=MEAN, std=STD, **options))
    order = place_in_batch(np.arange(8), 8)
    made = jax.device_get(function(jax.random.key(KEY), STEP, STORED["images"][order], STORED["labels"][order]))
    return [rows[np.argsort(order)] for rows in made]


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_the_streams_are_those_of_version_0_1(name):
    images, targets = run(CONFIGS[name])
    # Every other draw is a different pixel, hundreds of times as far off; compilers round the last bit differently.
    np.testing.assert_allclose(images, STORED[f"{name}/images"], atol=1e-6, err_msg=f"images of {name!r}")
    np.testing.assert_allclose(targets, STORED[f"{name}/targets"], atol=1e-6, err_msg=f"targets of {name!r}")


OTHERS = EVERY_SINGLE | {"rand_augment": "", "mixup": 1.0, "cutmix": 0.8}  # RandAugment takes long to compile


def toy(*, toy_rate):
    """A part that draws as many numbers as it likes and sets values to 0 with probability `toy_rate`."""

    def change(key, values, *others):
        changed = jnp.where(jax.random.uniform(key, values.shape) < toy_rate, 0, values).astype(values.dtype)
        return (changed, *others) if others else changed

    return change


@pytest.mark.slow
def test_new_parts_change_no_others_draws(monkeypatch):
    """Neither at the beginning nor in the midst nor at the end."""
    expected = run(OTHERS)
    table = [("first", parts.Part(toy, "bytes")), *parts.PARTS.items()]
    table[3:3] = [("middle", parts.Part(toy, "bytes")), ("floats", parts.Part(toy, "pixels"))]
    table += [("last", parts.Part(toy, "batch"))]
    monkeypatch.setattr(augment, "PARTS", dict(table))
    assert "toy_rate" in augment.option_names()
    images, targets = run(OTHERS | {"toy_rate": 0.0})
    np.testing.assert_allclose(images, expected[0], atol=1e-6, err_msg="images change, though the toys change nothing")
    np.testing.assert_allclose(targets, expected[1], atol=1e-6, err_msg="targets change, though the toys leave them")


@pytest.mark.slow
def test_a_new_part_draws_by_its_name(monkeypatch):
    drawn = []
    for name in ("toy", "toy", "other"):
        monkeypatch.setattr(augment, "PARTS", parts.PARTS | {name: parts.Part(toy, "pixels")})
        drawn.append(run(OFF | {"toy_rate": 0.5})[0])
    np.testing.assert_array_equal(drawn[0], drawn[1], err_msg="the same part draws differently")
    assert (drawn[0] != drawn[2]).mean() > 0.3, "two names draw the same numbers"


def test_the_keys_of_the_first_parts_are_those_of_one_split():
    key = jax.random.key(3)
    split = jax.random.key_data(jax.random.split(key, 6))
    singles = [name for name, part in parts.PARTS.items() if part.takes != "batch"]
    assert singles[:6] == ["flip", "shift", "rand_augment", "three_augment", "color_jitter", "erase"]
    for number, name in enumerate(singles[:6]):
        own = jax.random.key_data(jax.random.fold_in(key, augment.stream(name)))
        np.testing.assert_array_equal(own, split[number], err_msg=f"another stream than version 0.1.0's: {name}")


def test_every_part_has_a_stream_of_its_own():
    numbers = [augment.stream(name) for name in [*parts.PARTS, "toy", "other"]]
    assert len(set(numbers)) == len(numbers), "two parts share a stream"


def test_an_image_draws_by_its_position_whatever_the_batch_was_before():
    """Positions 16 to 23 as step 2 of batches of eight; and as step 5 of a run with smaller batches until then."""
    options = OFF | {"flip": 0.5, "shift": 1, "erase": 0.5}
    images, labels = STORED["images"], STORED["labels"]

    def singles(step, offset):
        function = jax.jit(augment.make_augment(CLASSES, mean=MEAN, std=STD, offset=offset, **options))
        return jax.device_get(function(jax.random.key(KEY), step, images, labels)[0])

    np.testing.assert_array_equal(singles(5, 5 * 8 - 16), singles(2, 0))
    np.testing.assert_array_equal(singles(1, 1 * 8 - 16), singles(2, 0), err_msg="after larger batches")
