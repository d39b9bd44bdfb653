"""The augmentation on the devices, against NumPy and the distributions it promises, sharded and unsharded."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from stce_jax.data import augment
from stce_jax.engine.mesh import batch_sharding, make_mesh, replicated

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OFF = {
    "mean": (0.0, 0.0, 0.0),
    "std": (1.0, 1.0, 1.0),
    "flip": 0.0,
    "shift": 0,
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


def assert_share(hits, probability, what):
    """That the share of hits is the probability, within four standard errors."""
    error = 4 * np.sqrt(probability * (1 - probability) / len(hits))
    assert abs(np.mean(hits) - probability) <= error, f"{what}: {np.mean(hits):.3f} of the draws, not {probability}"


# --- signatures


@pytest.mark.parametrize(
    "name, positional, keyword",
    [
        ("random_flip", ["key", "image"], ["probability"]),
        ("random_shift", ["key", "image"], ["pixels"]),
        ("mix", ["key", "images", "targets"], ["mixup", "cutmix", "switch_probability"]),
        ("cutmix_box", ["key", "keep", "height", "width"], []),
    ],
)
def test_the_key_comes_first_and_options_go_by_name(name, positional, keyword):
    parameters = inspect.signature(getattr(augment, name)).parameters.values()
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == positional
    assert [p.name for p in parameters if p.kind is p.KEYWORD_ONLY] == keyword
    assert all(p.default is p.empty for p in parameters), "values come from the config alone"


def test_no_random_function_is_missing_from_the_list_above():
    functions = inspect.getmembers(augment, inspect.isfunction)
    random = {name for name, function in functions if "key" in inspect.signature(function).parameters}
    assert random == {"random_flip", "random_shift", "mix", "cutmix_box"}


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
    """(images, targets) of many mixings of the four images."""
    return over_keys(lambda key: augment.mix(key, jnp.array(IMAGES), jnp.array(TARGETS), **MIXINGS[name]))


def kept(name):
    """[draws]: what the first image's target keeps of its own class."""
    return mixed(name)[1][:, 0, 0].astype(np.float64)


def is_cutmix(images):
    """[draws]: whether nothing was blended."""
    return ((images[..., 0] == 0) | (images[..., 0] == 1)).all(axis=(1, 2, 3))


@pytest.mark.parametrize("name", MIXINGS)
def test_targets_are_exactly_the_share_of_pixels(name):
    images, targets = mixed(name)
    np.testing.assert_allclose(images[..., 0].mean(axis=(2, 3)), targets[:, :, :2].sum(axis=2), atol=1e-5)
    np.testing.assert_allclose(targets.sum(axis=2), 1, atol=1e-6)
    assert targets.min() >= 0


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
    return augment.cutmix_box(key, keep, 6, 9)


# --- all together

EVERYTHING = {"mean": MEAN, "std": STD, "flip": 0.5, "shift": 2, "mixup": 1.0, "cutmix": 0.8, "label_smoothing": 0.1}
SINGLE = {"flip": 0.5, "shift": 1}  # what is drawn image by image
KEY = jax.random.key(7)


def test_switched_off_it_only_scales():
    images, labels = noise(4, 6, 6, 3), np.array([0, 4, 2, 2])
    out, targets = augmentation()(KEY, 0, images, labels)
    assert out.dtype == targets.dtype == jnp.float32
    np.testing.assert_allclose(out, images / 255, atol=1e-6)
    np.testing.assert_array_equal(targets, np.eye(5)[labels])


def test_sharding_changes_nothing():
    images, labels = noise(16, 6, 6, 3), np.arange(16) % 5
    mesh = make_mesh(fsdp_devices=2)
    assert mesh.size == 8
    sharded = jax.device_put((images, labels), batch_sharding(mesh))
    for step in range(4):  # mixup in some, CutMix in others
        expected = augmentation(**EVERYTHING)(KEY, step, images, labels)
        key, number = jax.device_put((KEY, jnp.int32(step)), replicated(mesh))
        found = augmentation(**EVERYTHING)(key, number, *sharded)
        for one, other, what in zip(found, expected, ("images", "targets"), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6, err_msg=f"{what} of step {step}")


def test_an_images_draws_depend_on_its_position_in_the_stream_alone():
    """Batch 8 at step 1 is the second half of batch 16 at step 0: a run split otherwise flips and shifts the same."""
    images, labels = noise(16, 6, 6, 3), np.arange(16) % 5
    whole, _ = augmentation(**SINGLE)(KEY, 0, images, labels)
    for step in range(2):
        rows = slice(8 * step, 8 * step + 8)
        half, _ = augmentation(**SINGLE)(KEY, step, images[rows], labels[rows])
        np.testing.assert_array_equal(half, whole[rows], err_msg=f"rows of step {step}")


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
    targets = [augmentation(**EVERYTHING)(KEY, step, noise(16, 6, 6, 3), np.arange(16) % 5)[1] for step in range(8)]
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


def test_smoothed_targets_stay_distributions_when_mixed():
    for step in range(8):
        _, targets = augmentation(**EVERYTHING)(KEY, step, noise(16, 6, 6, 3), np.arange(16) % 5)
        np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
        assert targets.min() >= 0.1 / 5 - 1e-6, "smoothing must lie below the mixed targets"
