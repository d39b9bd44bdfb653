"""Swin against the golden numbers of its published code and timm's, its sizes, and what its options refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from body_checks import check_bfloat16, check_refused, check_training, first_stage, images, noise
from golden_bodies import check_body, count_parameters, golden_model

from stce_jax.analysis.costs import count_model
from stce_jax.convert.initial import read_weights
from stce_jax.errors import CheckpointError
from stce_jax.models.factory import create_model, list_models, model_options
from stce_jax.models.ops.positions import resize_bicubic
from stce_jax.workdir.weights import flatten, save_weights

TINY = {"widths": (8, 12), "depths": (2, 1), "heads": (2, 3), "window": 2, "mlp_ratio": 2, "drop_path": 0.0}
PARAMETERS = {"swin_t": 28_288_354, "swin_s": 49_606_258, "swin_b": 87_768_224}  # 1000 classes
GOLDEN = ("swin_timm_pad_img44x36_w4", "swin_img32_w4", "swin_img64_w4_shift", "swin_timm_pad_img44x52_w4")


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN)
def test_models_equal_the_golden_numbers(name):
    arrays, model, variables, gradients = golden_model(name)
    merging = next(name for name in arrays if name.startswith("act/") and name.endswith("downsample"))
    activations = {"embedding_norm": arrays["act/patch_embed"], "downsampling_0": arrays[merging]}
    for index in range(sum(model.depths)):
        stage, block = divmod(index, 2)
        activations[f"blocks_{index}"] = arrays[f"act/layers.{stage}.blocks.{block}"]
    check_body(arrays, model, variables, gradients, activations)


@pytest.mark.parametrize(
    "name", ["swin_t", *(pytest.param(name, marks=pytest.mark.slow) for name in ("swin_s", "swin_b"))]
)
def test_the_published_sizes_have_their_parameters(name):
    model = create_model(name, num_classes=1000)
    assert count_parameters(model, 224) == PARAMETERS[name]
    assert model.stage_grids(224, 224) == [(56, 56), (28, 28), (14, 14), (7, 7)] and model.grid(228, 260) == (8, 9)


@pytest.mark.slow
def test_its_cost_is_the_published_one():
    counts = count_model(create_model("swin_t", num_classes=1000), 224)
    assert round(counts["multiply_adds"] / 1e9, 2) == 4.49
    with_stce = count_model(create_model("swin_t_stce", num_classes=1000), 224)
    assert with_stce["embedding_parameters"] == 8_352 and counts["embedding_parameters"] == 4_704


def test_its_names_are_those_of_the_published_models_and_those_with_another_embedding():
    assert {*PARAMETERS, "swin_t_stce", "swin_b_patch"} < set(list_models("swin_*"))
    assert not list_models("vit_*_linear_patch")
    assert model_options("swin_t_stce")["stem_widths"] == (16, 32) and model_options("swin_t")["patch_size"] == 4


@functools.cache
def tiny(**options):
    """(a tiny model, variables of noise)."""
    model = create_model("swin_t", num_classes=3, image_size=32, **{**TINY, **options})
    return model, noise(model)


@pytest.mark.slow
def test_paths_are_drawn_in_training_alone_and_remat_changes_nothing():
    model, variables = tiny(**first_stage(TINY) | {"depths": (2,), "drop_path": 0.9})
    check_training(model, variables, images(32, 32))


@pytest.mark.slow
@pytest.mark.parametrize("downsample", ["merging", "stce"])
def test_any_embedding_and_image_size_and_bfloat16(downsample):
    options = {"embedding": "stce", "stem_widths": (8,), "stem_strides": (2,), "cell": (2, 3), "dtype": "bfloat16"}
    model, variables = tiny(**options, downsample=downsample, downsample_iterations=2)
    assert model.stage_grids(37, 32) == [(10, 6), (5, 3)]
    check_bfloat16(model, variables, images(37, 32), (5, 3))


def test_clustering_in_place_of_merging_has_a_linear_layer_of_a_quarter_of_the_rows():
    for downsample, channels in (("merging", 32), ("stce", 8)):
        model, variables = tiny(downsample=downsample)
        params = jax.tree.map(jnp.shape, variables["params"]["downsampling_0"])
        assert params["projection"] == {"kernel": (channels, 12)} and params["norm"]["scale"] == (channels,)
        expected = {"downsample_iterations": 3} if downsample == "stce" else {}
        assert model.unshaped_options() == expected, "what decides whether a run's weights fit"


def test_a_larger_window_begins_with_the_tables_of_a_smaller_one(tmp_path):
    """By way of a file, as `--init_from` takes it."""
    (_, small), (model, large) = tiny(), tiny(window=4)
    save_weights(tmp_path / "weights.safetensors", small, ["a", "b", "c"])
    source = str(tmp_path / "weights.safetensors")
    arrays, line = read_weights(source, large, model, ["a", "b", "c"])
    assert "tables of relative positions interpolated from windows of 2x2 to 4x4" in line
    found, expected = flatten(small), flatten(large)
    assert {path: array.shape for path, array in arrays.items()} == {
        path: leaf.shape for path, leaf in expected.items()
    }
    for path, array in arrays.items():
        old = found[path]
        if path.endswith("bias_table"):
            old = resize_bicubic(old.reshape(3, 3, -1), (7, 7)).reshape(49, -1)
        np.testing.assert_array_equal(array, old, err_msg=path)


def test_tables_that_fit_for_no_reason_are_refused(tmp_path):
    (_, small), (model, large) = tiny(), tiny(window=4, heads=(4, 3))
    save_weights(tmp_path / "weights.safetensors", small, ["a"])
    with pytest.raises(CheckpointError, match="blocks_0/attention/bias_table"):
        read_weights(str(tmp_path / "weights.safetensors"), large, model, ["a"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": 8}, "widths is 8; it must be a list with an entry for each stage"),
        ({"depths": (1,)}, "depths has 1 entries, widths 2"),
        ({"depths": (0, 1)}, "an entry of model option depths is 0"),
        ({"heads": (3, 3)}, "width 8 cannot be divided among 3 heads"),
        ({"window": 0}, "window is 0"),
        ({"window": 1.5}, "window is 1.5"),
        ({"mlp_ratio": 0}, "mlp_ratio is 0"),
        ({"downsample": "pooling"}, "downsample is 'pooling'; it must be one of"),
        ({"downsample_iterations": 0}, "downsample_iterations is 0"),
        ({"drop_path": 1.0}, "drop_path is 1.0"),
        ({"reduction": "topk"}, "the body 'swin' takes no token reduction"),
        ({"image_size": 30}, "28 or 32 would work"),
    ],
)
def test_options_that_cannot_work_are_refused_in_one_line(options, message):
    check_refused("swin_t", message, **{**TINY, **options})
