"""Image operations against Pillow itself: over their whole range, on made-up images and on photographs."""

import functools
import io
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from pillow_reference import FILL, PILLOW, assert_equal_or_close, pillow, synthetic_images

from stce_jax.recipe import augment, pixels

# Name of the function -> its option, and values over the whole range; many are no round numbers.
FACTORS = ("factor", (0.0, 0.1, 0.19, 0.35, 0.5, 0.77, 0.999, 1.0, 1.001, 1.3, 1.62, 1.9, 3.0))
SHEARS = ("factor", (-0.3, -0.111, -0.02, 0.0, 0.07, 0.2, 0.3))
CASES = {
    "invert": (None, (None,)),
    "autocontrast": (None, (None,)),
    "equalize": (None, (None,)),
    "grayscale": (None, (None,)),
    "posterize": ("bits", range(9)),
    "solarize": ("threshold", (0, 1, 26, 100, 128, 200, 255, 256)),
    "solarize_add": ("amount", (0, 1, 11, 55, 99, 110, 127, 255)),
    "brightness": FACTORS,
    "contrast": FACTORS,
    "color": FACTORS,
    "sharpness": FACTORS,
    "gaussian_blur": ("radius", (0.1, 0.2, 0.45, 0.7, 1.0, 1.2, 1.5, 1.8, 2.0, 2.4)),
    "rotate": ("degrees", (-180, -90, -30, -29.3, -7.7, -0.4, 0, 1, 13, 27, 30, 60, 90, 200)),
    "shear_x": SHEARS,
    "shear_y": SHEARS,
    "translate_x": ("pixels", (-300.0, -16.2, -7.0, -0.5, 0.0, 0.3, 5.0, 11.7, 23.85)),
    "translate_y": ("pixels", (-300.0, -16.2, -7.0, -0.5, 0.0, 0.3, 5.0, 11.7, 23.85)),
}
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
EXACT = [name for name in CASES if name not in (*GEOMETRIC, "gaussian_blur")]


@functools.cache
def jitted(name):
    return jax.jit(getattr(augment, name))


def applied(name, image, value):
    option, _ = CASES[name]
    options = {} if option is None else {option: np.float32(value)}
    if name in GEOMETRIC:
        options["fill"] = np.array(FILL, np.uint8)
    return np.asarray(jitted(name)(image, **options))


def check(name, image, value, what):
    value = None if value is None else np.float32(value)  # the same number for both
    expected = pillow(name, image, value)
    assert_equal_or_close(applied(name, image, value), expected, name in EXACT, f"{name} {value} of {what}")


def test_every_operation_is_compared():
    assert set(CASES) == set(PILLOW)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_equals_pillow_on_made_up_images(name):
    for what, image in synthetic_images(37, 53).items():
        for value in CASES[name][1]:
            check(name, image, value, what)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("size", [(1, 1), (2, 5)])
def test_equals_pillow_on_tiny_images(name, size):
    for what, image in synthetic_images(*size).items():
        for value in CASES[name][1]:
            check(name, image, value, f"{what} {size}")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*GEOMETRIC, "gaussian_blur"])
@pytest.mark.parametrize("size", [(1, 1), (2, 5)])
def test_is_within_a_level_of_pillow_on_tiny_images(name, size):
    """No shares of pixels where there are ten; but nothing that falls on a border, where roundings decide."""
    image = synthetic_images(*size)["noise"]
    values = {"gaussian_blur": (0.4, 1.1, 2.0), "rotate": (-7.0, 20.0), "shear_x": (-0.1, 0.3), "shear_y": (-0.1, 0.3)}
    for value in values.get(name, (-0.7, 0.3)):
        found, expected = applied(name, image, value).astype(int), pillow(name, image, np.float32(value))
        assert np.abs(found - expected).max() <= 1, f"{name} {value} of {size}: {found} for {expected}"


@functools.cache
def photographs(folder):
    """Three crops of odd size, and one whole photograph: uint8 [H, W, 3]."""
    with zipfile.ZipFile(folder / "data" / "imagenet_samples.zip") as archive:
        names = sorted(each for each in archive.namelist() if "one_per_class/" in each and each.endswith(".JPEG"))
        images = [Image.open(io.BytesIO(archive.read(names[place]))).convert("RGB") for place in (3, 150, 301, 420)]
    return [np.asarray(image.crop((20, 10, 20 + 131, 10 + 97))) for image in images[:3]] + [np.asarray(images[3])]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_equals_pillow_on_photographs(name, test_data):
    for place, image in enumerate(photographs(test_data)):
        values = CASES[name][1]
        for value in values if place < 3 else values[:: max(1, len(values) // 3)]:
            check(name, image, value, f"photograph {place} {image.shape}")


def test_blends_are_pillows_for_every_pair_of_values():
    """All 256 x 256 pairs and many factors: no rounding other than Pillow's own survives that."""
    start, end = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    start, end = (np.repeat(each[:, :, None], 3, axis=2) for each in (start, end))
    blend = jax.jit(lambda start, end, factor: pixels.blend(start, end, factor=factor))
    rng = np.random.default_rng(0)
    for factor in np.float32([*rng.uniform(0, 1, 60), *rng.uniform(1, 2, 60), 0.1, 0.19, 1.81, 1.9]):
        expected = np.asarray(Image.blend(Image.fromarray(start), Image.fromarray(end), float(factor)))
        found = np.asarray(blend(start, end, factor))
        assert (found == expected).all(), f"factor {factor}: {(found != expected).sum()} pairs differ"


def test_autocontrast_falls_short_where_pillows_doubles_do():
    """For all 32,640 ranges a channel can have."""
    least, most = (each.ravel() for each in np.meshgrid(np.arange(256), np.arange(256), indexing="ij"))
    least, most = least[least < most], most[least < most]
    values = np.arange(256)
    counts = (values == least[:, None]) | (values == most[:, None])
    tables = np.asarray(jax.jit(jax.vmap(pixels.autocontrast_table))(jnp.asarray(counts, jnp.int32)))
    scale = 255.0 / (most - least)
    expected = (values * scale[:, None] + (-least * scale)[:, None]).astype(int)
    occurs = (values >= least[:, None]) & (values <= most[:, None])
    wrong = np.argwhere((tables != expected) & occurs)
    assert not len(wrong), f"{len(wrong)} entries, the first for {least[wrong[0][0]]}..{most[wrong[0][0]]}"


def test_equalize_is_pillows_for_any_counts():
    """Lopsided channels of few and of many pixels: steps of 0, 1 and more, entries beyond 255 that are clipped."""
    equalize = jitted("equalize")
    for seed in range(60):
        rng = np.random.default_rng(seed)
        weights = rng.dirichlet(np.full(256, rng.choice([0.003, 0.05, 1.0])))
        image = rng.choice(256, size=(37, 53, 3), p=weights).astype(np.uint8)
        image[:, : rng.integers(0, 53)] = rng.integers(0, 256)
        assert (np.asarray(equalize(image)) == pillow("equalize", image)).all(), f"seed {seed}"


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_vmapped_over_images_and_options_it_is_the_same(name):
    option, values = CASES[name]
    images = np.stack([synthetic_images(37, 53)[what] for what in ("noise", "gradient", "one flat channel")])
    values = [values[0], values[len(values) // 2], values[-1]]
    fill = {"fill": np.array(FILL, np.uint8)} if name in GEOMETRIC else {}

    def one(image, value):
        return getattr(augment, name)(image, **fill, **({option: value} if option else {}))

    numbers = np.float32([0 if value is None else value for value in values])
    found = np.asarray(jax.jit(jax.vmap(one))(images, numbers))
    for place, value in enumerate(values):
        what = f"{name} {value} under vmap"
        expected = pillow(name, images[place], None if value is None else numbers[place])
        assert_equal_or_close(found[place], expected, name in EXACT, what)
