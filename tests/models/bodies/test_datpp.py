"""DAT++ against the golden numbers of its published code, its sizes, and what its options refuse."""

import jax
import jax.numpy as jnp
import pytest
from body_checks import check_bfloat16, check_refused, check_training, first_stage, images, noise
from golden_bodies import check_body, count_parameters, golden_model
from golden_dat import activations, check_positions

from stce_jax.models.embeddings.datpp import DATPlusEmbed
from stce_jax.models.factory import create_model, list_models, model_options

TINY = {"widths": (8, 12), "heads": (2, 2), "kinds": ("ND", "L"), "windows": (2, 2), "groups": (1, 2)}
TINY |= {"kernels": (3, 3), "strides": (2, 1), "offset_ranges": (0.0, 0.0), "neighbourhoods": (3, 3)}
TINY |= {"layer_scale": (0.0, 0.1), "mlp_ratio": 2, "drop_path": 0.0}


@pytest.mark.slow
def test_the_model_equals_the_golden_numbers():
    arrays, model, variables, gradients = golden_model("datpp_img64")
    check_body(arrays, model, variables, gradients, activations(arrays, model))
    check_positions(arrays, model, variables)


@pytest.mark.slow
def test_the_published_size_has_its_parameters():
    model = create_model("datpp_t", num_classes=1000)
    assert count_parameters(model, 224) == 23_962_876  # published as 24 million
    assert model.stage_grids(224, 224) == [(56, 56), (28, 28), (14, 14), (7, 7)]


def test_its_names_are_those_of_the_published_model_and_those_with_another_embedding():
    assert {"datpp_t", "datpp_t_stce", "datpp_t_patch"} < set(list_models("datpp_*"))
    assert not list_models("*_*_datpp")
    assert model_options("datpp_t")["drop_path"] == 0.2


def test_its_own_embedding_has_19584_parameters_at_56x56x64():
    embedding = DATPlusEmbed(64)
    shapes = jax.eval_shape(lambda: embedding.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), train=False))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) + 2 * 64 == 19_584  # with the body's LayerNorm
    assert embedding.grid(224, 224) == (56, 56) and embedding.grid(225, 30) == (57, 8)


def tiny(**options):
    """(a tiny model, variables of noise)."""
    model = create_model("datpp_t", num_classes=3, image_size=16, **{**TINY, **options})
    return model, noise(model, mean=0.5, spread=0.2)


@pytest.mark.slow
def test_any_image_size_and_bfloat16():
    model, variables = tiny(dtype="bfloat16")
    check_bfloat16(model, variables, images(37, 30), (5, 4))


@pytest.mark.slow
def test_drop_path_draws_paths_and_remat_changes_nothing():
    model, variables = tiny(**first_stage(TINY) | {"layer_scale": (0.1,), "drop_path": 0.9})
    check_training(model, variables, images(16, 16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ("L", "LX")}, "kinds is 'LX'; it must be a letter for each block, of L, S, N, D, such as 'LD'"),
        ({"neighbourhoods": (2, 3)}, "neighbourhoods is 2; it must be odd, such as 3"),
        ({"layer_scale": (0.0, 2.0)}, "layer_scale is 2.0"),
        ({"layer_scale": (0.0,)}, "layer_scale has 1 entries, widths 2"),
        ({"image_size": 8}, "an image of 8x8 pixels is too small for 2 stages; 9x9 would work"),
    ],
)
def test_options_that_cannot_work_are_refused_in_one_line(options, message):
    check_refused("datpp_t", message, **{**TINY, **options})
