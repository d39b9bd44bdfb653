"""DAT against the golden numbers of its published code, its sizes, and what its options refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from body_checks import check_bfloat16, check_refused, check_training, first_stage, images, noise
from golden_bodies import check_body, count_parameters, flat, golden_model
from golden_dat import activations, check_positions

from stce_jax.analysis.costs import count_model, count_multiply_adds
from stce_jax.models.factory import create_model, list_models, model_options
from stce_jax.training.state import abstract_variables

TINY = {"widths": (8, 12), "heads": (2, 2), "kinds": ("S", "D"), "windows": (2, 2), "groups": (1, 2), "kernels": (3, 3)}
TINY |= {"strides": (1, 1), "offset_ranges": (2.0, 2.0), "mlp_ratio": 2, "drop_path": 0.0}


@pytest.mark.slow
def test_the_model_equals_the_golden_numbers():
    arrays, model, variables, gradients = golden_model("dat_v1_img64")
    check_body(arrays, model, variables, gradients, activations(arrays, model))
    check_positions(arrays, model, variables)


def test_the_published_size_has_its_parameters():
    model = create_model("dat_t", num_classes=1000)
    assert count_parameters(model, 224) == 28_319_138
    assert model.stage_grids(224, 224) == [(56, 56), (28, 28), (14, 14), (7, 7)]


@pytest.mark.slow
def test_the_published_size_has_its_multiply_adds():
    """Sampling is counted apart: as products here, while others, who gather, count nothing."""
    model = create_model("dat_t", num_classes=1000)
    every = count_model(model, 224)["multiply_adds"]
    variables = abstract_variables(model, 224)
    inputs = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    run = functools.partial(model.apply, train=False)
    sampling = count_multiply_adds(run, variables, inputs, scope="sampling")
    assert round((every - sampling) / 1e9, 2) == 4.56
    assert 0 < sampling / 1e9 < 0.2


def test_its_names_are_those_of_the_published_model_and_those_with_another_embedding():
    assert {"dat_t", "dat_t_stce", "dat_t_patch"} < set(list_models("dat_*"))
    assert model_options("dat_t")["patch_size"] == 4 and model_options("dat_t")["drop_path"] == 0.2


def tiny(image_size=16, **options):
    """(a tiny model, variables of noise)."""
    model = create_model("dat_t", num_classes=3, image_size=image_size, **{**TINY, **options})
    return model, noise(model, mean=0.5, spread=0.2)


@pytest.mark.slow
def test_any_image_size_and_embedding_and_bfloat16():
    model, variables = tiny(embedding="stce", stem_widths=(8,), stem_strides=(2,), cell=2, dtype="bfloat16")
    check_bfloat16(model, variables, images(37, 32), (5, 4))


@pytest.mark.slow
def test_drop_path_draws_paths_and_remat_changes_nothing():
    model, variables = tiny(**first_stage(TINY) | {"kinds": ("SD",), "drop_path": 0.9})
    check_training(model, variables, images(16, 16))


def test_samples_lie_within_their_range_of_the_grid():
    """And anywhere in the map without one."""
    model, _ = tiny()
    attention = model.bind({}).blocks[1].attention
    far = 100.0 * jnp.ones((1, 2, 4, 2))
    grid = np.stack(np.meshgrid([-0.5, 0.5], [-0.75, -0.25, 0.25, 0.75], indexing="ij"), axis=-1)[None]
    np.testing.assert_allclose(attention.positions(0.0 * far), grid, atol=1e-6)
    np.testing.assert_allclose(
        attention.positions(far), grid + np.array([1.0, 0.5]), atol=1e-6
    )  # two steps of 1/2 and 1/4
    np.testing.assert_allclose(attention.clone(offset_range=0.0).positions(far), 1.0, atol=1e-6)


def test_weights_of_another_image_size():
    (_, found), (model, expected) = tiny(16), tiny(32)
    found, expected = (
        {f"params/{key}": np.asarray(leaf) for key, leaf in flat(tree["params"]).items()} for tree in (found, expected)
    )
    table = "params/blocks_1/attention/bias_table"
    assert found[table].shape == (2, 3, 3) and expected[table].shape == (2, 7, 7)
    fitted, note = model.fit_weights(found, expected, None)
    assert {path: array.shape for path, array in fitted.items()} == {key: leaf.shape for key, leaf in expected.items()}
    assert note == "tables of relative positions interpolated"
    np.testing.assert_allclose(fitted[table].mean(axis=(1, 2)), found[table].mean(axis=(1, 2)), rtol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": ()}, "widths is (); it must be a list"),
        ({"heads": (3, 2)}, "width 8 cannot be divided among 3 heads"),
        ({"kinds": ("L",)}, "kinds has 1 entries, widths 2"),
        ({"kinds": ("L", "LN")}, "kinds is 'LN'; it must be a letter for each block, of L, S, D, such as 'LD'"),
        ({"kinds": ("", "D")}, "kinds is ''"),
        ({"kinds": (1, "D")}, "kinds is 1"),
        ({"windows": (0, 2)}, "windows is 0"),
        ({"groups": (1, 3)}, "2 heads of a stage with D cannot be divided among 3 groups"),
        ({"kernels": (3, 0)}, "kernels is 0"),
        ({"strides": (3, 0)}, "strides is 0"),
        ({"offset_ranges": (-1.0, 2.0)}, "offset_ranges is -1.0"),
        ({"mlp_ratio": 0}, "mlp_ratio is 0"),
        ({"drop_path": 1.0}, "drop_path is 1.0"),
        ({"reduction": "topk"}, "the body 'dat' takes no token reduction"),
        ({"image_size": 4}, "an image of 4x4 pixels is too small for 2 stages; 8x8 would work"),
    ],
)
def test_options_that_cannot_work_are_refused_in_one_line(options, message):
    check_refused("dat_t", message, **{**TINY, **options})
