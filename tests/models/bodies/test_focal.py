"""Focal Transformer against the golden numbers of its published code, its sizes, and what its options refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from body_checks import check_bfloat16, check_refused, check_training, first_stage, images, noise
from golden_bodies import check_body, count_parameters, flat, golden_model

from stce_jax.analysis.costs import count_model
from stce_jax.models.attentions.focal import (
    came_round,
    merged_bias,
    neighbourhoods,
    own_places,
    pooled_bias,
    strip_places,
)
from stce_jax.models.factory import create_model, list_models, model_options
from stce_jax.models.ops.windows import overlapping_windows

TINY = {"widths": (8, 12), "depths": (1, 1), "heads": (2, 3), "window": 2, "focal_windows": (3, 1), "expands": (1, 1)}
TINY |= {"layer_scale": (0.0, 0.0), "mlp_ratio": 2, "drop_path": 0.0}
COSTS = {"focal_t": (28_880_380, 4.95), "focal_conv_t": (30_825_244, 5.20)}  # parameters, 10^9 multiply-adds


@pytest.mark.slow
@pytest.mark.parametrize("name", ["focal_img32_w4", "focal_img64_w4_convembed"])
def test_models_equal_the_golden_numbers(name):
    arrays, model, variables, gradients = golden_model(name)
    names = [f"layers.{stage}.blocks.{index}" for stage, depth in enumerate(model.depths) for index in range(depth)]
    activations = {f"blocks_{place}": arrays[f"act/{name}"] for place, name in enumerate(names)}
    check_body(arrays, model, variables, gradients, {**activations, "embedding_norm": arrays["act/patch_embed"]})


@pytest.mark.parametrize("name", ["focal_t", pytest.param("focal_conv_t", marks=pytest.mark.slow)])
def test_the_published_sizes_have_their_parameters(name):
    model = create_model(name, num_classes=1000)
    assert count_parameters(model, 224) == COSTS[name][0]
    assert model.stage_grids(224, 224) == [(56, 56), (28, 28), (14, 14), (7, 7)]


@pytest.mark.slow
@pytest.mark.parametrize("name", COSTS)
def test_the_published_sizes_have_their_multiply_adds(name):
    """With the 12 of 230 keys that the published code has twice, and this one once."""
    model = create_model(name, num_classes=1000)
    stages = zip(model.depths, model.stage_grids(224, 224), model.widths, strict=True)
    # A map of one window has nothing around it.
    twice = sum(depth * 2 * 12 * rows * columns * width for depth, (rows, columns), width in stages if rows > 7)
    assert round((count_model(model, 224)["multiply_adds"] + twice) / 1e9, 2) == COSTS[name][1]


def test_its_names_are_those_of_the_published_models_and_those_with_another_embedding():
    assert {"focal_t", "focal_conv_t", "focal_t_stce", "focal_t_patch"} < set(list_models("focal_*"))
    assert model_options("focal_t")["patch_size"] == 4 and model_options("focal_conv_t")["patch_size"] == 7
    assert model_options("focal_t")["drop_path"] == 0.2 and model_options("focal_conv_t")["halving_kernel"] == 3


def places_around(rows, columns, window, expand):
    """Where the keys around a window lie in the map, by the definition, one by one."""
    row, column = window
    places = []
    for down, right in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        for y in range(4):
            for x in range(4):
                below, beside = (y >= 4 - expand, y < expand)[down < 0], (x >= 4 - expand, x < expand)[right < 0]
                if below or beside:
                    places.append((4 * row + y + down * expand, 4 * column + x + right * expand))
    return places


@pytest.mark.parametrize("expand", [1, 2, 3, 4])
def test_surroundings_are_those_of_the_definition(expand):
    rows, columns = 8, 12
    numbers = np.arange(rows * columns, dtype=np.float32).reshape(1, rows, columns, 1)
    wrapped = np.pad(numbers, ((0, 0), (expand, expand), (expand, expand), (0, 0)), mode="wrap")
    found = overlapping_windows(wrapped, 4, expand, np)[0, :, :, 0]
    np.testing.assert_array_equal(found, overlapping_windows(jnp.asarray(wrapped), 4, expand)[0, :, :, 0])
    outside = came_round((rows, columns), 4, expand)
    for window in range(6):
        row, column = divmod(window, 3)
        square = [(4 * row + y, 4 * column + x) for y in range(-expand, 4 + expand) for x in range(-expand, 4 + expand)]
        np.testing.assert_array_equal(found[window], [numbers[0, y % rows, x % columns, 0] for y, x in square])
        np.testing.assert_array_equal(outside[window], [not (0 <= y < rows and 0 <= x < columns) for y, x in square])
        strips = [square[place] for place in strip_places(4, expand)]
        assert strips == places_around(rows, columns, (row, column), expand)
        own = [(4 * row + y, 4 * column + x) for y in range(4) for x in range(4)]
        assert [square[place] for place in own_places(4, expand)] == own


def test_entries_of_one_key_add_up():
    bias = np.random.default_rng(0).normal(size=(2, 3, 6))
    places = np.array([0, 1, 2, 1, 1, 0])
    found = np.exp(merged_bias(jnp.asarray(bias), places, 4))
    expected = np.stack([np.exp(bias[..., places == place]).sum(axis=-1) for place in range(4)], axis=-1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_pooled_windows_around_a_window_and_their_biases():
    around = neighbourhoods(np.arange(1.0, 13).reshape(1, 3, 4, 1), 3, np)[0, :, :, 0]
    np.testing.assert_array_equal(around[0], [0, 0, 0, 0, 1, 2, 0, 5, 6])
    np.testing.assert_array_equal(around[6], [2, 3, 4, 6, 7, 8, 10, 11, 12])
    bias = pooled_bias(np.arange(36.0).reshape(1, 36), 4, 3)  # [1, 16, 9]
    assert bias[0, 4 * 3 + 1, 3 * 0 + 2] == (3 - 0 + 2) * 6 + (1 - 2 + 2)


def tiny(image_size=16, **options):
    """(a tiny model, variables of noise)."""
    model = create_model("focal_t", num_classes=3, image_size=image_size, **{**TINY, **options})
    return model, noise(model, mean=0.5, spread=0.2)


@pytest.mark.slow
def test_without_wrapping_a_border_does_not_see_the_opposite_one():
    """A change at the left border reaches the right one with the authors' rolls, and not without."""
    changed = images(32, 32)
    changed[:, :, :4] += 1.0
    options = {"widths": (8,), "depths": (1,), "heads": (2,), "focal_windows": (1,), "expands": (1,)}
    differs = {}
    for wrap in (True, False):
        model, variables = tiny(32, layer_scale=(0.0,), wrap=wrap, **options)
        run = jax.jit(lambda images, model=model, variables=variables: maps(model, variables, images))
        differs[wrap] = (run(images(32, 32)) != run(changed)).any(axis=(0, 1, 3))
    assert differs[False].tolist() == [True] * 2 + [False] * 6  # its own window alone
    assert differs[True].tolist() == [True] * 2 + [False] * 4 + [True] * 2


def maps(model, variables, images):
    tokens = model.apply(variables, images, train=False, method="tokens")
    return tokens.values.reshape(len(images), *tokens.grid, -1)


@pytest.mark.slow
def test_any_image_size_and_embedding_and_bfloat16():
    model, variables = tiny(embedding="stce", stem_widths=(8,), stem_strides=(2,), cell=2, dtype="bfloat16")
    check_bfloat16(model, variables, images(37, 32), (5, 4))


@pytest.mark.slow
def test_drop_path_draws_paths_and_remat_changes_nothing():
    model, variables = tiny(**first_stage(TINY) | {"depths": (2,), "drop_path": 0.9, "layer_scale": (0.1,)})
    check_training(model, variables, images(16, 16))


def test_weights_of_another_image_size():
    """Where a window was as small as its map, its tables are interpolated, and biases around it start at zero."""
    (_, found), (model, expected) = tiny(16, window=4), tiny(64, window=4)
    found, expected = (
        {f"params/{key}": np.asarray(leaf) for key, leaf in flat(tree["params"]).items()} for tree in (found, expected)
    )
    fitted, note = model.fit_weights(found, expected, None)
    assert {path: array.shape for path, array in fitted.items()} == {key: leaf.shape for key, leaf in expected.items()}
    assert "interpolated" in note and "start at zero" in note
    assert not fitted["params/blocks_1/attention/surrounding_bias"].any()
    pool = "params/blocks_1/attention/pool/kernel"
    assert np.isclose(fitted[pool].mean() * 16, found[pool].mean() * 4, rtol=0.2)
    assert model.fit_weights(expected, expected, None) == (expected, "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": ()}, "widths is (); it must be a list"),
        ({"depths": (1,)}, "depths has 1 entries, widths 2"),
        ({"heads": (3, 3)}, "width 8 cannot be divided among 3 heads"),
        ({"window": 0}, "window is 0"),
        ({"focal_windows": (2, 1)}, "focal_windows is 2; it must be odd, such as 3"),
        ({"focal_windows": (3,)}, "focal_windows has 1 entries"),
        ({"expands": (3, 1)}, "expands is 3; it must be a whole number between 0 and 2"),
        ({"mlp_ratio": 0}, "mlp_ratio is 0"),
        ({"layer_scale": (0.0, 2.0)}, "layer_scale is 2.0"),
        ({"halving_kernel": 4}, "halving_kernel is 4"),
        ({"drop_path": 1.0}, "drop_path is 1.0"),
        ({"reduction": "topk"}, "the body 'focal' takes no token reduction"),
        ({"image_size": 4}, "an image of 4x4 pixels is too small for 2 stages; 8x8 would work"),
        ({"image_size": 30}, "28 or 32 would work"),
    ],
)
def test_options_that_cannot_work_are_refused_in_one_line(options, message):
    check_refused("focal_t", message, **{**TINY, **options})
