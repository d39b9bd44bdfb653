"""The augmentation on the devices, against NumPy and the distributions it promises, sharded and unsharded."""

import functools
import inspect
import io
import itertools
import math
import re
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pillow_reference import assert_equal_or_close, pillow, synthetic_images

from stce_jax.errors import ConfigError
from stce_jax.recipe import (
    augment,
    erasing,
    geometry,
    mixing,
    parts,
    pixels,
    policy,
    rand_augment,
    transforms,
)
from stce_jax.recipe.mixing import place_in_batch
from stce_jax.training.mesh import batch_sharding, make_mesh, replicated

# Exactness under full optimisation is test_pixels' and test_rand_augment's matter.

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OFF = {
    "mean": (0.0, 0.0, 0.0),
    "std": (1.0, 1.0, 1.0),
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
DRAWS = 2000


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def over_keys(function, count=DRAWS, seed=0):
    """The function's results for many keys, stacked."""
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(function))(keys(count, seed)))


@functools.cache
def augmentation(**options):
    return jax.jit(augment.make_augment(5, **(OFF | options)))


def in_order(augmented, key, step, images, labels):
    """What an augmentation makes of a batch that is given, and returned, in the order of the stream."""
    order = place_in_batch(np.arange(len(images)), len(images))
    return [np.asarray(rows)[np.argsort(order)] for rows in augmented(key, step, images[order], labels[order])]


def assert_share(hits, probability, what):
    """That the share of hits is the probability, within four standard errors."""
    error = 4 * np.sqrt(probability * (1 - probability) / len(hits))
    assert abs(np.mean(hits) - probability) <= error, f"{what}: {np.mean(hits):.3f} of the draws, not {probability}"


# --- signatures

MODULES = (augment, erasing, geometry, mixing, parts, pixels, policy, rand_augment, transforms)
ARRAYS = ["key", "image", "images", "targets", "labels", "degenerate", "table", "counts", "operation"]
SHAPES = ["num_classes", "keep", "height", "width", "text", "options"]
FUNCTIONS = {
    f"{module.__name__.rpartition('.')[2]}.{name}": function
    for module in MODULES
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if not name.startswith("_") and function.__module__ == module.__name__
}
NO_OPERATIONS = {"augment.make_augment", "augment.stream", "mixing.place_in_batch"}


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - NO_OPERATIONS))
def test_the_key_comes_first_and_options_go_by_name_and_are_explained(name):
    function = inspect.unwrap(FUNCTIONS[name])
    parameters = inspect.signature(function).parameters.values()
    positional = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    options = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
    assert len(positional) + len(options) == len(parameters), "no *args or **kwargs"
    assert "key" not in positional[1:] + options, "the key comes first"
    assert set(positional) <= {*ARRAYS, *SHAPES}, "options go by name"
    defaults = {each.name for each in parameters if each.default is not each.empty}
    assert defaults <= {"threshold"}, "values come from the config alone"
    text = inspect.getdoc(function)
    unexplained = [option for option in options if option not in text]
    assert not unexplained, f"the docstring does not say what {unexplained} are"


def test_everything_can_be_had_from_one_module():
    public = {"rotate", "shear_x", "translate_y", "equalize", "gaussian_blur", "rand_augment", "parse_policy"}
    assert public <= set(augment.__all__)
    assert all(callable(getattr(augment, name)) for name in augment.__all__)


def test_it_computes_nothing_when_imported():
    for module in MODULES:
        arrays = [name for name, value in vars(module).items() if isinstance(value, jax.Array | np.ndarray)]
        assert not arrays, f"{module.__name__} makes {arrays} at import"


# --- options


def test_options_are_those_of_the_parts_and_no_other():
    assert set(augment.option_names()) == OFF.keys() - {"mean", "std"}
    options = {name: value for name, value in OFF.items() if name != "erase_ratio"}
    with pytest.raises(TypeError, match="'erase' needs the option 'erase_ratio'"):
        augment.make_augment(5, **options)
    with pytest.raises(TypeError, match="has an option 'erase_rate'"):
        augment.make_augment(5, **OFF, erase_rate=0.1)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("flip", 2.0, "config.augment.flip is 2.0; it must be between 0 and 1"),
        ("mixup", float("nan"), "config.augment.mixup is nan; it must be 0, or between 0.001 and 1000"),
        (
            "erase_area",
            (0.5,),
            "config.augment.erase_area is (0.5,); it must be two numbers between 1e-06 and 1, the smaller first",
        ),
        ("erase_area", (0.5, 1.5), "must be two numbers between"),
        ("label_smoothing", 1.1, "config.augment.label_smoothing is 1.1; it must be between 0 and 1"),
        ("erase_ratio", (3, 2), "must be two numbers between"),
        ("rand_augment", "rand-q3", "'q3'"),
    ],
)
def test_values_out_of_range_are_refused(key, value, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        augment.make_augment(5, **(OFF | {key: value}))


# --- normalisation


def test_normalize_is_numpys():
    images = noise(3, 4, 5, 3)
    expected = (images / 255.0 - np.array(MEAN)) / np.array(STD)
    normalized = augment.normalize(images, mean=MEAN, std=STD)
    assert normalized.dtype == jnp.float32
    np.testing.assert_allclose(normalized, expected, rtol=0, atol=2e-6)


# --- flips and shifts


def test_flip_mirrors_left_to_right_with_its_probability():
    image = noise(4, 6, 3)
    flipped = over_keys(lambda key: augment.random_flip(key, image, probability=0.3))
    mirrored = (flipped == image[:, ::-1]).all(axis=(1, 2, 3))
    kept = (flipped == image).all(axis=(1, 2, 3))
    assert (mirrored ^ kept).all(), "neither the image nor its mirror image"
    assert_share(mirrored, 0.3, "mirrored")


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_flip_never_and_always(probability):
    image = noise(4, 6, 3)
    flipped = over_keys(lambda key: augment.random_flip(key, image, probability=probability), 50)
    np.testing.assert_array_equal(flipped, np.stack([image[:, ::-1] if probability else image] * 50))


@pytest.mark.parametrize("pixels", [0, 1, 2])
def test_shift_moves_by_each_offset_equally_often_and_repeats_the_edge(pixels):
    image = noise(4, 5, 3)
    padded = np.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)), mode="edge")
    moved = {
        padded[top : top + 4, left : left + 5].tobytes(): 0
        for top in range(2 * pixels + 1)
        for left in range(2 * pixels + 1)
    }
    assert len(moved) == (2 * pixels + 1) ** 2
    for shifted in over_keys(lambda key: augment.random_shift(key, image, pixels=pixels)):
        assert shifted.tobytes() in moved, "no shift of the image by that many pixels"
        moved[shifted.tobytes()] += 1
    if pixels:
        p = scipy.stats.chisquare(list(moved.values())).pvalue
        assert p > 1e-3, f"offsets are not equally likely (p = {p:.1e}): {sorted(moved.values())}"


# --- targets


@given(
    labels=st.lists(st.integers(0, 4), min_size=3, max_size=3),
    smoothing=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_label_smoothing_is_its_formula(labels, smoothing):
    targets = np.asarray(augment.soft_targets(jnp.array(labels), 5, smoothing=smoothing))
    expected = np.full((3, 5), smoothing / 5)
    expected[np.arange(3), labels] += 1 - smoothing
    np.testing.assert_allclose(targets, expected, atol=1e-7)
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)


# --- mixing

HEIGHT, WIDTH = 12, 10
# Four images. Red: whether it is of the first half; its mean is then the share of the first half's pixels, for every
# image meets one of the other half. Green and blue: which image and which pixel it is.
IMAGES = np.zeros((4, HEIGHT, WIDTH, 3), np.float32)
IMAGES[:2, :, :, 0] = 1
IMAGES[..., 1] = np.arange(4)[:, None, None]
IMAGES[..., 2] = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) / 100 + np.arange(4)[:, None, None]
TARGETS = np.eye(4, dtype=np.float32)
# The probability of switching must not matter where one of the two is off.
MIXINGS = {
    "mixup": {"mixup": 0.4, "cutmix": 0.0, "switch_probability": 1.0},
    "cutmix": {"mixup": 0.0, "cutmix": 1.0, "switch_probability": 0.0},
    "both": {"mixup": 2.0, "cutmix": 1.0, "switch_probability": 0.25},
}


@functools.cache
def mixed(name):
    """(images, targets) of many mixings of the four images, in the order of the stream."""
    order = place_in_batch(np.arange(4), 4)
    batch = jnp.array(IMAGES[order]), jnp.array(TARGETS[order])
    made = over_keys(lambda key: augment.mix(key, *batch, **MIXINGS[name]))
    return [values[:, np.argsort(order)] for values in made]


def kept(name):
    """[draws]: what the first image's target keeps of its own class."""
    return mixed(name)[1][:, 0, 0].astype(np.float64)


def is_cutmix(images):
    """[draws]: whether nothing was blended."""
    return ((images[..., 0] == 0) | (images[..., 0] == 1)).all(axis=(1, 2, 3))


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXINGS)
def test_targets_are_exactly_the_share_of_pixels(name):
    images, targets = mixed(name)
    np.testing.assert_allclose(images[..., 0].mean(axis=(2, 3)), targets[:, :, :2].sum(axis=2), atol=1e-5)
    np.testing.assert_allclose(targets.sum(axis=2), 1, atol=1e-6)
    assert targets.min() >= 0


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXINGS)
def test_the_partner_is_the_batch_reversed_with_one_lambda_and_one_box(name):
    images, targets = mixed(name)
    keep = targets[:, :1, :1]
    np.testing.assert_allclose(targets, keep * TARGETS + (1 - keep) * TARGETS[::-1], atol=1e-6)
    pasted = is_cutmix(images)
    box = images[pasted, 0, :, :, 0] == 0  # where the first image shows the last
    expected = np.where(box[:, None, :, :, None], IMAGES[::-1], IMAGES)
    np.testing.assert_array_equal(images[pasted], expected, err_msg="CutMix")
    keep = keep[~pasted, :, :, None, None]
    np.testing.assert_allclose(images[~pasted], keep * IMAGES + (1 - keep) * IMAGES[::-1], atol=1e-5, err_msg="mixup")


@pytest.mark.parametrize("name, alpha", [("mixup", 0.4), ("both", 2.0)])
def test_mixups_lambda_is_beta_distributed(name, alpha):
    keep = kept(name)[~is_cutmix(mixed(name)[0])]
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(keep.mean() - 0.5) < 4 * np.sqrt(variance / len(keep)), f"mean {keep.mean():.3f}"
    np.testing.assert_allclose(keep.var(), variance, rtol=0.15)
    p = scipy.stats.kstest(keep, scipy.stats.beta(alpha, alpha).cdf).pvalue
    assert p > 1e-3, f"not Beta({alpha}, {alpha}): p = {p:.1e}"


def test_cutmix_is_chosen_with_its_probability():
    assert_share(is_cutmix(mixed("both")[0]), 0.25, "CutMix")


def test_one_switched_off_leaves_the_other_always():
    assert not is_cutmix(mixed("mixup")[0]).any(), "CutMix, though it is off"
    assert is_cutmix(mixed("cutmix")[0]).all(), "mixup, though it is off"
    assert np.mean(kept("cutmix") < 1) > 0.8, "CutMix alone hardly ever happens"


@pytest.mark.parametrize("batch", [1, 2, 5, 8])
def test_partners_are_neighbours_and_every_image_has_a_place(batch):
    order = [place_in_batch(row, batch) for row in range(batch)]
    assert sorted(order) == list(range(batch))
    np.testing.assert_array_equal(place_in_batch(np.arange(batch, dtype=np.uint32), batch), order)
    assert all(one + other == batch - 1 for one, other in zip(order[::2], order[1::2], strict=False))
    images = np.array(order, np.float32)[:, None, None, None] * np.ones((1, 2, 2, 3), np.float32)
    targets = np.eye(batch, dtype=np.float32)[order]
    made, mixed_targets = augment.mix(KEY, images, targets, mixup=1.0, cutmix=0.0, switch_probability=0.0)
    keep = mixed_targets[0, 0] if batch > 1 else 1.0
    others = batch - 1 - np.array(order)
    np.testing.assert_allclose(made[:, 0, 0, 0], keep * np.array(order) + (1 - keep) * others, atol=1e-5)


def test_both_off_changes_nothing():
    images, targets = jnp.array(IMAGES), jnp.array(TARGETS)
    out = augment.mix(jax.random.key(0), images, targets, mixup=0.0, cutmix=0.0, switch_probability=0.5)
    assert out[0] is images and out[1] is targets


def test_cutmixs_kept_share_is_lambda_but_for_clipping_and_whole_pixels():
    """The box before it is cut at the border has the area 1 - lambda, lambda Beta(1, 1): compare with NumPy's boxes."""
    rng = np.random.default_rng(0)
    expected = []
    for _ in range(DRAWS):
        row, column = rng.integers(HEIGHT), rng.integers(WIDTH)
        expected.append(1 - numpy_box(row, column, rng.beta(1, 1), HEIGHT, WIDTH).mean())
    p = scipy.stats.ks_2samp(kept("cutmix").round(4), np.round(expected, 4)).pvalue
    assert p > 1e-3, f"kept shares are distributed otherwise than CutMix's: p = {p:.1e}"


def numpy_box(center_row, center_column, keep, height, width):
    """CutMix's box as its authors' code computes it."""
    cut_height, cut_width = int(height * np.sqrt(1 - keep)), int(width * np.sqrt(1 - keep))
    top, bottom = np.clip([center_row - cut_height // 2, center_row + cut_height // 2], 0, height)
    left, right = np.clip([center_column - cut_width // 2, center_column + cut_width // 2], 0, width)
    box = np.zeros((height, width, 1), bool)
    box[top:bottom, left:right] = True
    return box


@pytest.mark.parametrize("keep", [0.0, 0.31, 0.73, 1.0])
def test_cutmixs_boxes_are_its_authors_centred_anywhere(keep):
    expected = {}
    for row in range(6):
        for column in range(9):
            box = numpy_box(row, column, keep, 6, 9).tobytes()
            expected[box] = expected.get(box, 0) + 1 / (6 * 9)
    found = dict.fromkeys(expected, 0)
    for box in np.asarray(draw_boxes(keys(DRAWS), jnp.float32(keep))):
        assert box.dtype == bool and box.shape == (6, 9, 1)
        assert box.tobytes() in expected, f"a box that no centre gives:\n{box[:, :, 0].astype(int)}"
        found[box.tobytes()] += 1
    if len(expected) > 1:
        p = scipy.stats.chisquare(list(found.values()), [DRAWS * share for share in expected.values()]).pvalue
        assert p > 1e-3, f"centres are not equally likely: p = {p:.1e}"


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, None))
def draw_boxes(key, keep):
    return mixing.cutmix_box(key, keep, 6, 9)


# --- three_augment and colour jitter


def test_three_augment_is_one_of_three_equally_often():
    image = synthetic_images(13, 17)["noise"]
    found = over_keys(lambda key: augment.three_augment(key, image))
    grey = (found == pillow("grayscale", image)).all(axis=(1, 2, 3))
    solarized = (found == pillow("solarize", image, 128)).all(axis=(1, 2, 3))
    assert_share(grey, 1 / 3, "grey")
    assert_share(solarized, 1 / 3, "solarised")


def test_three_augments_blurs_are_pillows_with_radii_uniform_from_a_tenth_to_two():
    """A white pixel on black: the more blurred, the darker is what is left of it."""
    image = np.zeros((13, 17, 3), np.uint8)
    image[6, 8] = (255, 128, 64)
    found = over_keys(lambda key: augment.three_augment(key, image))
    left = found[:, 6, 8]  # of the pixel
    blurred = found[(left != left[:, :1]).any(axis=1) & (left != (0, 127, 64)).any(axis=1)]  # not grey, not solarised
    assert_share(np.arange(DRAWS) < len(blurred), 1 / 3, "blurred")
    radii = np.random.default_rng(0).uniform(0.1, 2, 1000)
    expected = [pillow("gaussian_blur", image, radius) for radius in radii]
    p = scipy.stats.ks_2samp(blurred[:, 6, 8, 0], [picture[6, 8, 0] for picture in expected]).pvalue
    assert p > 1e-3, f"radii are not uniform over 0.1..2: p = {p:.1e}"
    for picture in blurred[:50]:
        nearest = min(np.abs(picture.astype(int) - each).max() for each in expected)
        assert nearest <= 2, f"no blur that Pillow makes of it: {nearest} levels off"


@pytest.mark.slow
@pytest.mark.parametrize("strength", [0.3, 1.5])
def test_color_jitter_is_pillows_in_every_order_equally_often(strength):
    image = synthetic_images(13, 17)["noise"]
    kinds = ("brightness", "contrast", "color")
    orders = dict.fromkeys(itertools.permutations(range(3)), 0)
    pictures = over_keys(lambda key: augment.color_jitter(key, image, strength=strength), 600)
    low, high = max(0, 1 - strength), 1 + strength
    factors = over_keys(lambda key: jax.random.uniform(jax.random.split(key)[1], (3,), minval=low, maxval=high), 600)
    for picture, three in zip(pictures, factors, strict=True):
        fitting = []
        for order in orders:
            expected = functools.reduce(lambda image, kind: pillow(kinds[kind], image, three[kind]), order, image)
            fitting += [order] * bool((picture == expected).all())
        assert fitting, f"brightness, contrast, color {three}: Pillow gives this in no order"
        for order in fitting:  # several where the orders do not matter
            orders[order] += 1 / len(fitting)
    p = scipy.stats.chisquare(list(orders.values())).pvalue
    assert p > 1e-3, f"orders are not equally likely (p = {p:.1e}): {orders}"
    for kind in range(3):
        p = scipy.stats.kstest(factors[:, kind], scipy.stats.uniform(low, high - low).cdf).pvalue
        assert p > 1e-3, f"factors of {kinds[kind]} are not uniform over {low}..{high}: p = {p:.1e}"


@pytest.mark.slow
def test_both_are_pillows_on_a_photograph(test_data):
    with zipfile.ZipFile(test_data / "data" / "imagenet_samples.zip") as archive:
        name = sorted(each for each in archive.namelist() if "one_per_class/" in each and each.endswith(".JPEG"))[33]
        image = np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB").resize((131, 97)))
    for picture, key in zip(over_keys(lambda key: augment.three_augment(key, image), 12), keys(12), strict=True):
        choice_key, radius_key = jax.random.split(key)
        radius = jax.random.uniform(radius_key, minval=0.1, maxval=2.0)
        names = (("grayscale", None), ("solarize", 128), ("gaussian_blur", radius))
        kind, option = names[int(jax.random.randint(choice_key, (), 0, 3))]
        assert_equal_or_close(picture, pillow(kind, image, option), kind != "gaussian_blur", f"{kind} {option}")


# --- random erasing

ERASING = {"area": (0.02, 1 / 3), "ratio": (0.3, 3.3)}


def numpy_erasing_box(rng, height, width, area, ratio):
    """timm's box, or none, in plain Python."""
    for _ in range(10):
        target = rng.uniform(*area) * height * width
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_height, box_width = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if box_width < width and box_height < height:
            top = rng.integers(0, height - box_height, endpoint=True)
            return top, rng.integers(0, width - box_width, endpoint=True), box_height, box_width
    return 0, 0, 0, 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "size, area", [((48, 64), (0.02, 1 / 3)), ((64, 24), (0.02, 1 / 3)), ((40, 40), (0.5, 0.98)), ((8, 8), (0.02, 0.2))]
)
def test_boxes_are_distributed_as_timms(size, area):
    options = {"area": area, "ratio": ERASING["ratio"]}
    found = np.stack(over_keys(lambda key: erasing.erasing_box(key, *size, **options), 4000), axis=1)
    rng = np.random.default_rng(1)
    expected = np.array([numpy_erasing_box(rng, *size, **options) for _ in range(8000)])
    views = {
        "top": lambda box: box[:, 0],
        "left": lambda box: box[:, 1],
        "height": lambda box: box[:, 2],
        "width": lambda box: box[:, 3],
        "area": lambda box: box[:, 2] * box[:, 3],
        "room below": lambda box: size[0] - box[:, 0] - box[:, 2],
        "room at the right": lambda box: size[1] - box[:, 1] - box[:, 3],
    }
    empty, expected_empty = (found[:, 2] == 0).mean(), (expected[:, 2] == 0).mean()
    assert abs(empty - expected_empty) < 0.02, f"{empty:.3f} find no box, not {expected_empty:.3f}"
    for what, view in views.items():
        p = scipy.stats.ks_2samp(view(found[found[:, 2] > 0]), view(expected[expected[:, 2] > 0])).pvalue
        assert p > 1e-3, f"{what} is distributed otherwise than timm's: p = {p:.1e}"
    assert (found[:, 2] < size[0]).all() and (found[:, 3] < size[1]).all()
    assert (found[:, 0] + found[:, 2] <= size[0]).all() and (found[:, 1] + found[:, 3] <= size[1]).all()


@pytest.mark.slow
def test_areas_and_log_ratios_are_uniform():
    _, _, height, width = over_keys(lambda key: erasing.erasing_box(key, 2000, 2000, **ERASING), 4000)
    p = scipy.stats.kstest(height * width / 2000**2, scipy.stats.uniform(0.02, 1 / 3 - 0.02).cdf).pvalue
    assert p > 1e-3, f"areas are not uniform: p = {p:.1e}"
    low, high = np.log(ERASING["ratio"])
    p = scipy.stats.kstest(np.log(height / width), scipy.stats.uniform(low, high - low).cdf).pvalue
    assert p > 1e-3, f"ratios are not log-uniform: p = {p:.1e}"


def erased(probability, count=1000, image=None, **options):
    image = np.full((24, 32, 3), 7, np.float32) if image is None else image
    options = ERASING | options
    return over_keys(lambda key: augment.random_erasing(key, image, probability=probability, **options), count)


@pytest.mark.slow
def test_one_whole_box_is_erased_with_its_probability():
    found = erased(0.25)
    changed = found != 7
    assert_share(changed.any(axis=(1, 2, 3)), 0.25, "erased")
    for mask in changed[changed.any(axis=(1, 2, 3))]:
        rows, columns = np.flatnonzero(mask.any(axis=(1, 2))), np.flatnonzero(mask.any(axis=(0, 2)))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all(), "not one full box"
        assert rows[-1] - rows[0] < 23 and columns[-1] - columns[0] < 31, "as long as the image"


def test_it_is_filled_with_standard_normal_noise_that_never_repeats():
    found = erased(1.0)
    values = found[found != 7].astype(np.float64)
    p = scipy.stats.kstest(values[::97], scipy.stats.norm.cdf).pvalue
    assert p > 1e-3, f"not N(0, 1): p = {p:.1e}"
    assert abs(values.mean()) < 5 / np.sqrt(len(values)) and abs(values.std() - 1) < 5 / np.sqrt(2 * len(values))
    for picture in found[:100]:
        noise = picture[picture != 7]
        assert len(np.unique(noise)) > 0.99 * len(noise), "values repeat within a box"
    assert len(np.unique(values)) > 0.9 * len(values), "images share their noise"


@pytest.mark.slow
@pytest.mark.parametrize("area, ratio", [((0.6, 0.7), (0.7, 0.8)), ((0.02, 0.5), (9, 99))])
def test_noise_suffices_for_the_largest_boxes(area, ratio):
    """More noise than values to fill is drawn for any range of boxes: hardly any repeats in the fullest image."""
    found = erased(1.0, 300, area=area, ratio=ratio)
    fullest = max(found, key=lambda picture: (picture != 7).sum())
    noise = fullest[fullest != 7]
    assert len(np.unique(noise)) > 0.995 * len(noise) > 0


@pytest.mark.slow
def test_no_box_that_fits_changes_nothing():
    assert (erased(1.0, 200, area=(0.9, 1.0), ratio=(9.0, 10.0)) == 7).all()


def test_probability_zero_changes_nothing():
    assert (erased(0.0, 200) == 7).all()


# --- all together

SINGLE = {"flip": 0.5, "shift": 1}  # what is drawn image by image
EVERY_SINGLE = SINGLE | {
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "three_augment": True,
    "color_jitter": 0.3,
    "erase": 0.5,
    "mean": MEAN,
    "std": STD,
}
MIXING = {"mixup": 1.0, "cutmix": 0.8, "label_smoothing": 0.1}
MIXED, EVERYTHING = SINGLE | MIXING, EVERY_SINGLE | MIXING
KEY = jax.random.key(7)


def test_switched_off_it_only_scales():
    images, labels = noise(4, 6, 6, 3), np.array([0, 4, 2, 2])
    out, targets = augmentation()(KEY, 0, images, labels)
    assert out.dtype == targets.dtype == jnp.float32
    np.testing.assert_allclose(out, images / 255, atol=1e-6)
    np.testing.assert_array_equal(targets, np.eye(5)[labels])


@pytest.mark.slow
def test_sharding_changes_nothing():
    images, labels = noise(16, 12, 10, 3), np.arange(16) % 5
    mesh = make_mesh(2, jax.devices())
    assert mesh.size == 8
    sharded = jax.device_put((images, labels), batch_sharding(mesh))
    augmented = augmentation(**EVERYTHING)
    for step in range(4):  # mixup in some, CutMix in others
        expected = augmented(KEY, jnp.int32(step), images, labels)
        key, number = jax.device_put((KEY, jnp.int32(step)), replicated(mesh))
        found = augmented(key, number, *sharded)
        for one, other, what in zip(found, expected, ("images", "targets"), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6, err_msg=f"{what} of step {step}")


@pytest.mark.slow
@pytest.mark.parametrize("options", [EVERY_SINGLE, EVERYTHING], ids=["without mixing", "with mixing"])
def test_images_stay_on_their_devices(options):
    """Mixing, too, finds an image's partner on the same device."""
    mesh = make_mesh(2, jax.devices())
    images, labels = jax.device_put((noise(16, 12, 10, 3), np.arange(16) % 5), batch_sharding(mesh))
    key, step = jax.device_put((KEY, jnp.int32(3)), replicated(mesh))
    compiled = augmentation(**options).lower(key, step, images, labels).compile()
    collectives = re.findall(r"= (\S+) (all-\w+|collective-permute|reduce-scatter)[-\w]*\(", compiled.as_text())
    assert not collectives, f"devices wait for one another: {collectives}"
    for output in compiled.output_shardings:
        assert not output.is_fully_replicated, "the batch is not split any more"


@pytest.mark.slow
@pytest.mark.parametrize("start", [0, 2**28 + 6])  # the second is beyond what 32 bits hold with a sign
def test_an_images_draws_depend_on_its_position_in_the_stream_alone(start):
    """Batch 8 at step 1 is the second half of batch 16 at step 0: a run split otherwise draws the same."""
    images, labels = noise(16, 12, 10, 3), np.arange(16) % 5
    whole, _ = in_order(augmentation(**EVERY_SINGLE), KEY, start // 2, images, labels)
    for part in range(2):
        rows = slice(8 * part, 8 * part + 8)
        half, _ = in_order(augmentation(**EVERY_SINGLE), KEY, start + part, images[rows], labels[rows])
        np.testing.assert_allclose(half, whole[rows], atol=1e-6, err_msg=f"rows of step {start + part}")


@pytest.mark.slow
def test_an_image_does_not_depend_on_the_others_of_its_batch():
    images, labels = noise(16, 12, 10, 3), np.arange(16) % 5
    others = images.copy()
    others[:8] = noise(8, 12, 10, 3, seed=1)
    one, _ = augmentation(**EVERY_SINGLE)(KEY, 5, images, labels)
    other, _ = augmentation(**EVERY_SINGLE)(KEY, 5, others, labels)
    np.testing.assert_array_equal(one[8:], other[8:])
    assert (np.asarray(one[:8]) != other[:8]).any(axis=(1, 2, 3)).all()


@pytest.mark.slow
def test_an_image_is_augmented_anew_whenever_it_comes():
    image = synthetic_images(12, 10)["noise"]
    out, _ = augmentation(**EVERY_SINGLE)(KEY, 0, np.repeat(image[None], 64, axis=0), np.zeros(64, int))
    assert len({view.tobytes() for view in np.asarray(out)}) == 64


@pytest.mark.slow
@pytest.mark.parametrize(
    "part, off, idle", [("flip", 0.0, 1e-9), ("rand_augment", "", "rand-n1-p0"), ("erase", 0.0, 1e-9)]
)
def test_switching_one_part_on_leaves_the_draws_of_the_others(part, off, idle):
    """An idle part is on, but changes no pixel."""
    images, labels = noise(16, 12, 10, 3), np.arange(16) % 5
    others = SINGLE | {"color_jitter": 0.3, "erase": 0.5}
    alone, _ = augmentation(**(others | {part: off}))(KEY, 2, images, labels)
    beside, _ = augmentation(**(others | {part: idle}))(KEY, 2, images, labels)
    np.testing.assert_allclose(alone, beside, atol=1e-6)


@pytest.mark.slow
def test_the_parts_come_in_order():
    """The same as the functions one after the other, each with a subkey of the image's own key."""
    images, labels = noise(16, 12, 10, 3), np.arange(16) % 5
    found, _ = in_order(augmentation(**EVERY_SINGLE), KEY, 2, images, labels)
    fill = (124, 116, 104)

    @jax.jit
    def expected(position, image):
        own = jax.random.split(jax.random.fold_in(jax.random.split(KEY)[0], position), 6)
        image = augment.random_flip(own[0], image, probability=0.5)
        image = augment.random_shift(own[1], image, pixels=1)
        image = augment.rand_augment(own[2], image, policy=EVERY_SINGLE["rand_augment"], fill=fill)
        image = augment.three_augment(own[3], image)
        image = augment.color_jitter(own[4], image, strength=0.3)
        return augment.random_erasing(own[5], augment.normalize(image, mean=MEAN, std=STD), probability=0.5, **ERASING)

    for row in range(16):
        np.testing.assert_allclose(found[row], expected(2 * 16 + row, images[row]), atol=1e-5, err_msg=f"row {row}")


@pytest.mark.slow
def test_what_comes_from_outside_has_the_mean_colour():
    images, labels = np.zeros((64, 12, 10, 3), np.uint8), np.zeros(64, int)
    out, _ = augmentation(rand_augment="rand-m10-p1-w0-n1", mean=MEAN, std=STD)(KEY, 0, images, labels)
    values = np.round((np.asarray(out) * STD + MEAN) * 255).astype(int)
    corners = values[:, [0, 0, -1, -1], [0, -1, 0, -1]].reshape(-1, 3)
    share = (corners == (124, 116, 104)).all(axis=1).mean()
    assert share > 0.2, f"only {share:.1%} of the corners have the fill colour"


def test_a_bad_policy_is_refused_before_anything_is_compiled():
    with pytest.raises(ConfigError, match="'q3'"):
        augment.make_augment(5, **(OFF | {"rand_augment": "rand-q3"}))


def test_parts_that_are_off_are_not_computed():
    off = {name: value for name, value in OFF.items() if name not in ("std", "label_smoothing")}
    for name, part in parts.PARTS.items():
        own = inspect.signature(part.make).parameters
        assert part.make(**{option: off[option] for option in own}) is None, f"{name} is on"


@pytest.mark.slow
def test_positions_steps_and_seeds_draw_differently():
    image = noise(1, 8, 8, 3)
    images, labels = np.repeat(image, 64, axis=0), np.zeros(64, int)
    runs = {
        (seed, step): np.asarray(augmentation(**SINGLE)(jax.random.key(seed), step, images, labels)[0])
        for seed in (0, 1)
        for step in (0, 1)
    }
    for drawn in runs.values():
        assert len({view.tobytes() for view in drawn}) > 12, "the rows of a batch are drawn alike"  # of 18 there are
    assert len({drawn.tobytes() for drawn in runs.values()}) == 4, "steps or seeds are drawn alike"
    targets = [augmentation(**MIXED)(KEY, step, noise(16, 6, 6, 3), np.arange(16) % 5)[1] for step in range(8)]
    assert len({np.asarray(values).tobytes() for values in targets}) > 4, "the steps mix alike"


def test_flip_and_shift_are_drawn_independently():
    """Each image comes out as one of its 2 x 9 views, each equally often."""
    image = noise(1, 8, 8, 3)[0]
    views = {}
    for flipped in (image, image[:, ::-1]):
        padded = np.pad(flipped, ((1, 1), (1, 1), (0, 0)), mode="edge")
        for top in range(3):
            for left in range(3):
                views[padded[top : top + 8, left : left + 8].tobytes()] = 0
    assert len(views) == 18
    out, _ = augmentation(**SINGLE)(KEY, 3, np.repeat(image[None], DRAWS, axis=0), np.zeros(DRAWS, int))
    for view in np.asarray(out * 255).round().astype(np.uint8):
        assert view.tobytes() in views, "no flip and shift of the image"
        views[view.tobytes()] += 1
    p = scipy.stats.chisquare(list(views.values())).pvalue
    assert p > 1e-3, f"flip and shift are not independent (p = {p:.1e}): {sorted(views.values())}"


@pytest.mark.slow
def test_smoothed_targets_stay_distributions_when_mixed():
    for step in range(8):
        _, targets = augmentation(**MIXED)(KEY, step, noise(16, 6, 6, 3), np.arange(16) % 5)
        np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
        assert targets.min() >= 0.1 / 5 - 1e-6, "smoothing must lie below the mixed targets"


@pytest.mark.parametrize("options", [{"rand_augment": "rand-m9-mstd0.5-inc1"}, {"three_augment": True}])
def test_a_user_may_have_jax_refuse_to_add_axes(options):
    every = {"flip": 0.5, "shift": 2, "color_jitter": 0.3, "erase": 0.25, "mixup": 0.8, "cutmix": 1.0}
    augmented = augment.make_augment(5, **(OFF | every | options))
    images, labels = jax.ShapeDtypeStruct((4, 12, 12, 3), jnp.uint8), jax.ShapeDtypeStruct((4,), jnp.int32)
    with jax.numpy_rank_promotion("raise"):
        given = jax.eval_shape(augmented, jax.random.key(0), 0, images, labels)
    assert [leaf.shape for leaf in given] == [(4, 12, 12, 3), (4, 5)]


@pytest.mark.slow
@pytest.mark.parametrize("step, mixes", [(4, True), (5, False)])
def test_the_last_steps_may_be_left_unmixed(step, mixes):
    """To the bit what there is without mixing, and before that what there is with it; other draws stay."""
    images, labels = noise(4, 8, 8, 3, seed=3), np.arange(4) % 5
    rest = {"flip": 0.5, "label_smoothing": 0.1}

    def made(**options):
        return jax.device_get(augmentation(**rest, **options)(jax.random.key(1), step, images, labels))

    found = made(mixup=1.0, cutmix=1.0, mixed_steps=5)
    expected = made(mixup=1.0, cutmix=1.0) if mixes else made()
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
