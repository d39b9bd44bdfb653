"""MobileViT against golden numbers of timm's form of it, its sizes, small and odd images, and what options refuse."""

import jax.numpy as jnp
import numpy as np
import pytest
from body_checks import check_bfloat16, check_refused, check_training, first_stage, images, noise
from golden_bodies import check_body, golden_model
from golden_files import last

from stce_jax.analysis.costs import count_model
from stce_jax.models.bodies.mobilevit import fold, unfold
from stce_jax.models.factory import create_model, list_models

TINY = {"width": 8, "widths": (12, 12), "token_widths": (8, 6), "depths": (1, 2), "heads": (2, 3), "strides": (2, 1)}
TINY |= {"expansion": 2, "head_width": 16, "dropout": 0.0, "head_dropout": 0.0, "stem_blocks": 1, "stem_expansion": 2}
PARAMETERS = {"s": 5_578_632, "xs": 2_317_848, "xxs": 1_272_024}  # 1000 classes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilevit_img48x80_interp", "mobilevit_img64"])
def test_equals_the_golden_numbers(name):
    arrays, model, variables, gradients = golden_model(name)
    activations = {"embedding/stage_0_block_0": last(arrays["act/stages.0.0"])}
    for stage in range(3):
        activations[f"residuals_{stage}"] = last(arrays[f"act/stages.{stage + 2}.0"])
        activations[f"blocks_{stage}"] = last(arrays[f"act/stages.{stage + 2}.1"])
    check_body(arrays, model, variables, gradients, activations)


@pytest.mark.slow
@pytest.mark.parametrize("size", PARAMETERS)
def test_published_sizes(size):
    model = create_model(f"mobilevit_{size}", num_classes=1000, image_size=256)
    counted = count_model(model, 256)
    assert counted["parameters"] == PARAMETERS[size]
    if size == "s":
        # The published count leaves out attention's products of queries, keys and values.
        stages = zip(model.stage_grids(256, 256), model.token_widths, model.depths, strict=True)
        attention = sum(2 * 4 * (rows * columns // 4) ** 2 * width * depth for (rows, columns), width, depth in stages)
        assert round((counted["multiply_adds"] - attention) / 1e9, 2) == 1.82
        assert counted["embedding_parameters"] == 90_960


def tiny(image_size=32, **options):
    return create_model("mobilevit_s", num_classes=3, image_size=image_size, **{**TINY, **options})


def test_names_and_the_stem_of_each_size():
    assert {"mobilevit_xxs", "mobilevit_s_stce", "mobilevit_xs_patch"} <= set(list_models("mobilevit_*"))
    stems = {
        size: create_model(f"mobilevit_{size}", num_classes=3, image_size=256).embedding for size in ("xxs", "xs", "s")
    }
    assert {size: stem.stem_widths for size, stem in stems.items()} == {
        "xxs": (16, 16, 24),
        "xs": (16, 32, 48),
        "s": (16, 32, 64),
    }
    assert {size: stem.stem_expansion for size, stem in stems.items()} == {"xxs": 2, "xs": 4, "s": 4}


def test_strides_for_small_images():
    model = create_model("mobilevit_s", num_classes=3, image_size=32, strides=(1, 2, 2), stem_strides=(2, 1, 1))
    assert model.embedding.grid(32, 32) == (16, 16)
    assert model.stage_grids(32, 32) == [(16, 16), (8, 8), (4, 4)]
    assert tiny().grid(37, 32) == (5, 4)


def test_patches_are_taken_apart_by_places():
    features = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    tokens = unfold(features)
    assert tokens.shape == (2, 4, 6, 3)
    for y, x in ((0, 1), (1, 0)):
        np.testing.assert_array_equal(tokens[:, 2 * y + x].reshape(2, 2, 3, 3), features[:, y::2, x::2])
    np.testing.assert_array_equal(fold(tokens, (4, 6)), features)


@pytest.mark.slow
def test_training_drops_and_draws_paths_and_remat_changes_nothing():
    model = tiny(**first_stage(TINY) | {"depths": (2,), "drop_path": 0.9, "dropout": 0.5, "head_dropout": 0.5})
    check_training(model, noise(model), images(32, 32))


@pytest.mark.slow
def test_any_embedding_and_image_size_and_bfloat16():
    """The map of 5x3 is resized to 6x4 for the transformer."""
    options = {name: value for name, value in TINY.items() if "stem" not in name}
    options |= {"embedding": "stce", "stem_widths": (8,), "stem_strides": (2,), "cell": (2, 3), "strides": (1, 1)}
    model = create_model("mobilevit_s", num_classes=3, image_size=32, dtype="bfloat16", **options)
    assert model.grid(37, 32) == (10, 6)
    check_bfloat16(model, noise(model), images(37, 17), (10, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": ()}, "widths is (); it must be a list"),
        ({"depths": (1,)}, "depths has 1 entries, widths 2"),
        ({"heads": (3, 3)}, "width 8 cannot be divided among 3 heads"),
        ({"strides": (2, 3)}, "an entry of model option strides is 3"),
        ({"token_widths": (8, 0)}, "an entry of model option token_widths is 0"),
        ({"width": 0}, "width is 0"),
        ({"expansion": 0}, "expansion is 0"),
        ({"head_width": 0}, "head_width is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"head_dropout": -0.1}, "head_dropout is -0.1"),
        ({"drop_path": 1.0}, "drop_path is 1.0"),
        ({"stem_widths": (4, 4, 16)}, "must end with the model's width, 8"),
        ({"stem_strides": (2, 1, 4)}, "an entry of stem_strides behind the first is 4"),
        ({"stem_blocks": 0}, "stem_blocks is 0"),
        ({"stem_expansion": 0}, "stem_expansion is 0"),
        ({"reduction": "topk"}, "the body 'mobilevit' takes no token reduction"),
    ],
)
def test_options_that_cannot_work_are_refused_in_one_line(options, message):
    check_refused("mobilevit_s", message, **{**TINY, **options})
