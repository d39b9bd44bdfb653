"""CvT against the numbers of its published code, its sizes and costs, its options, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from body_checks import check_bfloat16, check_refused, check_training, first_stage, images, noise
from golden_bodies import check_body, golden_model
from golden_files import last

from stce_jax.analysis.costs import count_model
from stce_jax.analysis.drawing.introspection import attention_grid, class_attention
from stce_jax.models.factory import create_model, list_models, model_options

TINY = {"widths": (8, 12), "depths": (1, 2), "heads": (2, 3), "mlp_ratio": 2, "drop_path": 0.0}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cvt_img36x44", "cvt_img32"])
def test_models_equal_the_golden_numbers(name):
    arrays, model, variables, gradients = golden_model(name)
    activations = {}
    for stage, depth in enumerate(model.depths):
        activations[f"embedding_norms_{stage}"] = last(arrays[f"act/stage{stage}.patch_embed"])
        for index in range(depth):
            own, theirs = f"blocks_{sum(model.depths[:stage]) + index}", f"act/stage{stage}.blocks.{index}"
            activations |= {own: arrays[theirs], f"{own}/attention": arrays[f"{theirs}.attn"]}
    check_body(arrays, model, variables, gradients, activations)


# The published code's own figures, and multiply-adds in thousands of millions. Ours count neither norms nor means, but
# the products of attention, as theirs; and of a convolution at the border those with the padding.
@pytest.mark.slow
@pytest.mark.parametrize(("name", "parameters", "costs"), [("cvt_13", 19_997_480, 4.57), ("cvt_21", 31_622_696, 7.18)])
def test_the_published_sizes_have_their_parameters_and_costs(name, parameters, costs):
    model = create_model(name, num_classes=1000)
    counted = count_model(model, 224)
    assert counted["parameters"] == parameters
    assert round(counted["multiply_adds"] / 1e9, 2) == costs
    assert model.grid(224, 224) == (14, 14) and model.stage_grids(37, 50) == [(9, 12), (5, 6), (3, 3)]


def test_its_names_and_the_options_of_its_embedding():
    assert {"cvt_13", "cvt_21", "cvt_13_stce", "cvt_21_patch"} < set(list_models("cvt_*"))
    assert not list_models("*_overlap_patch")
    options = model_options("cvt_13")
    assert (options["patch_size"], options["patch_stride"], options["drop_path"]) == (7, 4, 0.1)
    assert model_options("cvt_13_stce")["stem_widths"] == (16, 32)


@functools.cache
def tiny(**options):
    """(a tiny model, variables of noise)."""
    model = create_model("cvt_13", num_classes=3, image_size=16, **{**TINY, **options})
    return model, noise(model)


def logits_of(model, variables):
    return jax.jit(lambda variables: model.apply(variables, images(16, 16), train=False))(variables)


@pytest.mark.slow
def test_what_options_change_in_variables_and_logits():
    model, variables = tiny()
    expected = logits_of(model, variables)
    for option in ({"scale": "head"}, {"activation": "gelu"}):
        other, same = tiny(**option)
        assert jax.tree.map(jnp.shape, same) == jax.tree.map(jnp.shape, variables), option
        assert not np.allclose(logits_of(other, variables), expected), option
        assert other.unshaped_options() | option == other.unshaped_options() != model.unshaped_options()
    pooled, without = tiny(class_token=False)
    assert "class_token" not in without["params"] and np.isfinite(logits_of(pooled, without)).all()
    averaged, plain = tiny(projection="average")
    assert "batch_stats" not in plain and np.isfinite(logits_of(averaged, plain)).all()
    clustered, linear_layers = tiny(downsample="stce")
    assert linear_layers["params"]["downsampling_0"]["projection"]["kernel"].shape == (8, 12)
    assert np.isfinite(logits_of(clustered, linear_layers)).all()


@pytest.mark.slow
def test_the_published_scale_is_the_head_s_of_a_single_head():
    model, variables = tiny(heads=(1, 1))
    np.testing.assert_allclose(logits_of(model.clone(scale="head"), variables), logits_of(model, variables), rtol=1e-6)


@pytest.mark.slow
def test_drop_path_acts_in_the_last_stage_alone():
    model, variables = tiny()

    def train(model, key=1):
        def run(variables):
            rngs = {"dropout": jax.random.key(key)}
            logits, new = model.apply(
                variables,
                images(16, 16),
                train=True,
                mutable=["batch_stats", "intermediates"],
                rngs=rngs,
                capture_intermediates=True,
            )
            blocks = [new["intermediates"][f"blocks_{index}"]["__call__"][0].values for index in range(3)]
            return logits, blocks, new["batch_stats"]

        return jax.jit(run)(variables)

    plain, blocks, statistics = train(model)
    dropped, others, _ = train(model.clone(drop_path=0.9))
    np.testing.assert_allclose(blocks[0], others[0], rtol=1e-5)
    np.testing.assert_allclose(blocks[1], others[1], rtol=1e-5)  # the last stage's first block has rate 0
    assert not np.allclose(blocks[2], others[2]) and not np.allclose(plain, dropped)
    changed = jax.tree.map(lambda old, new: bool((old != new).any()), variables["batch_stats"], statistics)
    assert all(jax.tree.leaves(changed)), changed


@pytest.mark.slow
def test_training_draws_paths_and_remat_changes_nothing():
    model, variables = tiny(**first_stage(TINY) | {"depths": (2,), "drop_path": 0.9})
    check_training(model, variables, images(16, 16))


@pytest.mark.slow
def test_any_embedding_and_image_size_and_bfloat16():
    options = {"embedding": "stce", "stem_widths": (8,), "stem_strides": (2,), "cell": (2, 3), "dtype": "bfloat16"}
    model, variables = tiny(**options)
    check_bfloat16(model, variables, images(37, 32), (5, 3), leading=1)


@pytest.mark.parametrize(("projection", "side"), [pytest.param("conv", 2, marks=pytest.mark.slow), ("average", 3)])
def test_the_class_tokens_attention_lies_on_the_grid_of_the_keys(projection, side):
    model, variables = tiny(projection=projection)
    found = jax.eval_shape(lambda: class_attention(model, variables, jnp.zeros((2, 32, 32, 3))))
    assert found.shape == (2, 2, side, side)  # the last stage's two blocks
    assert attention_grid(model, 32) == ((side, side), 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": 8}, "widths is 8; it must be a list with an entry for each stage"),
        ({"depths": (1,)}, "depths has 1 entries, widths 2"),
        ({"depths": (0, 1)}, "an entry of model option depths is 0"),
        ({"heads": (3, 3)}, "width 8 cannot be divided among 3 heads"),
        ({"mlp_ratio": 0}, "mlp_ratio is 0"),
        ({"projection": "linear"}, "projection is 'linear'; it must be one of conv, average"),
        ({"scale": "none"}, "scale is 'none'; it must be one of width, head"),
        ({"activation": "relu"}, "activation is 'relu'; it must be one of quick_gelu, gelu"),
        ({"downsample": "pool"}, "downsample is 'pool'; it must be one of conv, stce"),
        ({"drop_path": 1.0}, "drop_path is 1.0"),
        ({"image_size": 2}, "an image of 2x2 pixels leaves no token; sides from 3 on would work"),
        ({"reduction": "topk"}, "the body 'cvt' takes no token reduction"),
    ],
)
def test_options_that_cannot_work_are_refused_in_one_line(options, message):
    check_refused("cvt_13", message, **{**TINY, **options})
