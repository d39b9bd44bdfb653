"""CMT against the golden numbers of its published code, its sizes, other sizes of images, and what options refuse."""

import jax
import numpy as np
import pytest
from body_checks import check_bfloat16, check_refused, check_training, first_stage, images, noise
from flax.traverse_util import flatten_dict
from golden_bodies import check_body, golden_model
from golden_files import last

from stce_jax.analysis.costs import count_model
from stce_jax.errors import CheckpointError, ConfigError
from stce_jax.models.factory import create_model, list_models
from stce_jax.models.ops.positions import resize_bicubic
from stce_jax.recipe.optimizers import decay_mask
from stce_jax.training.state import abstract_variables

TINY = {"widths": (8, 12), "depths": (1, 1), "heads": (2, 3), "key_strides": (2, 1), "mlp_ratios": (2.0, 1.5)}
TINY |= {"head_width": 16, "drop_path": 0.0, "stem_widths": (4, 4, 4), "dtype": "float32"}
# size: (parameters, billions of multiply-adds at pixels), with 1000 classes, as measured from the published code
PUBLISHED = {
    "ti": (9_492_426, 0.64, 160),
    "xs": (15_247_208, 1.55, 192),
    "s": (26_256_160, 4.03, 224),
    "b": (45_715_076, 9.32, 256),
}
STAGES = "abcd"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cmt_img32", "cmt_img64"])
def test_equals_the_golden_numbers(name):
    arrays, model, variables, gradients = golden_model(name)
    activations = {"embedding/module_3": last(arrays["act/stem"]), "stage_norms_0": arrays["act/patch_embed_a"]}
    names = [f"{letter}.{index}" for letter, depth in zip(STAGES, model.depths, strict=True) for index in range(depth)]
    activations |= {f"blocks_{place}": arrays[f"act/blocks_{name}"] for place, name in enumerate(names)}
    check_body(arrays, model, variables, gradients, activations)


@pytest.mark.slow
@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes(size):
    parameters, billions, pixels = PUBLISHED[size]
    model = create_model(f"cmt_{size}", num_classes=1000, image_size=pixels)
    counted = count_model(model, pixels)
    assert counted["parameters"] == parameters
    # What makes the keys' places is a sum of products here, which is not counted.
    stages = zip(model.stage_grids(pixels, pixels), model.widths, model.depths, model.key_strides, strict=True)
    keys = sum(np.prod(grid) * width * depth for grid, width, depth, stride in stages if stride > 1)
    assert round((counted["multiply_adds"] + keys) / 1e9, 2) == billions


def tiny(image_size=32, **options):
    return create_model("cmt_s", num_classes=3, image_size=image_size, **{**TINY, **options})


def by_path(variables):
    return flatten_dict(variables, sep="/")


def test_names_and_the_stem_of_each_size():
    assert {"cmt_s", "cmt_ti", "cmt_s_stce", "cmt_b_patch"} <= set(list_models("cmt_*"))
    stems = {
        size: create_model(f"cmt_{size}", num_classes=3, image_size=160).embedding.stem_widths for size in PUBLISHED
    }
    assert stems == {"ti": (16,) * 3, "xs": (16,) * 3, "s": (32,) * 3, "b": (38,) * 3}
    small = create_model("cmt_s", num_classes=3, image_size=32, key_strides=(4, 2, 1, 1), stem_strides=(1, 1, 1))
    assert small.stage_grids(32, 32) == [(16, 16), (8, 8), (4, 4), (2, 2)], "for images of 32 pixels"


@pytest.mark.slow
def test_position_biases_do_not_decay():
    mask = flatten_dict(decay_mask(abstract_variables(tiny(), 32)["params"]), sep="/")
    assert not mask["position_bias_0"] and mask["blocks_0/attention/kernel"] and mask["merging_0/projection/kernel"]


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({}, 36, "stage 1 a map of 9x9, which key_strides 2 does not divide; 32x32 or 40x40 pixels would work"),
        ({"key_strides": (8, 1)}, 232, "58x58, which key_strides 8 does not divide; 224x224 or 256x256 pixels would"),
        ({"embedding": "patch"}, 36, "9x9, which key_strides 2 does not divide; 32x32 or 40x40 pixels would work"),
        ({}, (32, 4), "stage 1 a map of 8x1"),
        ({"embedding": "patch"}, 4, "a map of 1x1, which key_strides 2 does not divide; 8x8 pixels would work"),
        ({}, 2, "leaves no token; sides from 3 on would work"),
        ({"widths": (8, 12, 16), "depths": (1,) * 3, "heads": (1,) * 3, "key_strides": (1,) * 3}, 8, "stage 3"),
    ],
)
def test_image_sizes_that_cannot_be_cut_are_refused_with_some_that_can(options, size, message):
    if "embedding" in options:
        options = {**options, "stem_widths": None}
    options = {**TINY, "mlp_ratios": (2.0,) * len(options.get("widths", (1, 1))), **options}
    options = {name: value for name, value in options.items() if value is not None}
    check_refused("cmt_s", message, image_size=size, **options)


def test_other_images_than_those_of_its_size_are_refused():
    model = tiny()
    variables = abstract_variables(model, 32)
    assert model.grid(40, 40) == (5, 5), "where they would lie"
    with pytest.raises(ConfigError, match="are for images of 32x32 pixels, not 40x40; make one with that image_size"):
        jax.eval_shape(lambda variables: model.apply(variables, images(40, 40), train=False), variables)


@pytest.mark.slow
def test_weights_are_fitted_to_another_size_of_images():
    """Each head's biases of a key are a map over the queries, and those of a query one over the keys."""
    old, new = tiny(32), tiny(64)
    found, expected = by_path(noise(old)), by_path(abstract_variables(new, 64))
    bias = found["params/position_bias_0"].astype(np.float32)  # of 8x8 queries and 4x4 keys
    by_queries = np.stack(
        [[resize_bicubic(head[:, key].reshape(8, 8, 1), (16, 16)) for key in range(16)] for head in bias]
    )
    by_queries = by_queries.reshape(2, 4, 4, 256)
    wanted = np.stack([resize_bicubic(head, (8, 8)).reshape(64, 256).T for head in by_queries])
    for grid in (None, (4, 4)):
        fitted, note = new.fit_weights(found, expected, grid)
        assert note == "position biases interpolated from 8x8 to 16x16"
        assert {path: array.shape for path, array in fitted.items()} == {p: leaf.shape for p, leaf in expected.items()}
        np.testing.assert_allclose(fitted["params/position_bias_0"], wanted, atol=1e-5)
    same, note = old.fit_weights(found, by_path(abstract_variables(old, 32)), (4, 4))
    assert note == "" and all(same[path] is array for path, array in found.items())


@pytest.mark.slow
def test_weights_of_images_that_are_no_squares():
    wide, square = tiny((16, 64)), tiny(32)
    expected = by_path(abstract_variables(square, 32))
    found = {"params/position_bias_0": np.zeros((2, 64, 16)), "params/position_bias_1": np.zeros((3, 16, 16))}
    fitted, note = square.fit_weights(found, expected, wide.grid(16, 64))
    assert note == "position biases interpolated from 4x16 to 8x8"
    assert fitted["params/position_bias_0"].shape == (2, 64, 16)
    found["params/position_bias_0"] = np.zeros((2, 32, 8))
    assert fitted["params/position_bias_1"] is not found["params/position_bias_1"], "of a map of 2x8, now 4x4"
    with pytest.raises(CheckpointError, match="position_bias_0 is of 32 places, no square map"):
        square.fit_weights(found, expected, None)


@pytest.mark.slow
def test_training_draws_paths_and_drops_features_and_remat_changes_nothing():
    model = tiny(**first_stage(TINY) | {"depths": (2,), "drop_path": 0.9, "dropout": 0.5})
    check_training(model, noise(model), images(32, 32))


@pytest.mark.slow
def test_any_embedding_and_bfloat16():
    options = {name: value for name, value in TINY.items() if name != "stem_widths"}
    options |= {"embedding": "stce", "stem_widths": (8,), "stem_strides": (2,), "cell": (2, 2), "dtype": "bfloat16"}
    model = create_model("cmt_s", num_classes=3, image_size=(32, 48), **options)
    check_bfloat16(model, noise(model), images(32, 48), (4, 6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": ()}, "widths is (); it must be a list"),
        ({"depths": (1,)}, "depths has 1 entries, widths 2"),
        ({"heads": (3, 3)}, "width 8 cannot be divided among 3 heads"),
        ({"key_strides": (2, 0)}, "an entry of model option key_strides is 0"),
        ({"mlp_ratios": (2.0, -1.0)}, "an entry of model option mlp_ratios is -1.0"),
        ({"mlp_ratios": (2.0, 0.01)}, "an MLP of ratio 0.01 has no hidden channel of 12"),
        ({"head_width": 0}, "head_width is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"drop_path": 1.0}, "drop_path is 1.0"),
        ({"stem_widths": (4, 4, 0)}, "an entry of stem_widths"),
        ({"stem_strides": 2}, "stem_strides is 2; it must be a list"),
        ({"reduction": "topk"}, "the body 'cmt' takes no token reduction"),
    ],
)
def test_options_that_cannot_work_are_refused_in_one_line(options, message):
    check_refused("cmt_s", message, **{**TINY, **options})
