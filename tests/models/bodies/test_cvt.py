"""CvT against the numbers of its published code, its sizes and costs, its options, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_bodies import check_body, golden_body
from golden_files import convolution, last, linear, norm, statistics

from stce_jax.analysis.costs import count_model
from stce_jax.analysis.drawing.introspection import attention_grid, class_attention
from stce_jax.errors import ConfigError
from stce_jax.models.bodies.cvt import CvT
from stce_jax.models.embeddings.overlap_patch import OverlapPatchEmbed
from stce_jax.models.factory import create_model, list_models, model_options
from stce_jax.training.state import abstract_variables

TINY = {"widths": (8, 12), "depths": (1, 2), "heads": (2, 3), "mlp_ratio": 2, "drop_path": 0.0}


def block(weights, prefix):
    """(parameters, statistics) of a `ConvAttentionBlock` from weights behind a prefix such as "stage0.blocks.0."."""
    params, batch_stats = {"out": linear(weights, f"{prefix}attn.proj")}, {}
    for name in ("query", "key", "value"):
        convolved = f"{prefix}attn.conv_proj_{name[0]}"
        params[name] = linear(weights, f"{prefix}attn.proj_{name[0]}")
        params[f"{name}_projection"] = convolution(weights, f"{convolved}.conv") | {
            "norm": norm(weights, f"{convolved}.bn")
        }
        batch_stats[f"{name}_projection"] = {"norm": statistics(weights, f"{convolved}.bn")}
    rest = {
        "attention_norm": norm(weights, f"{prefix}norm1"),
        "mlp_norm": norm(weights, f"{prefix}norm2"),
        "mlp": {"in": linear(weights, f"{prefix}mlp.fc1"), "out": linear(weights, f"{prefix}mlp.fc2")},
    }
    return rest | {"attention": params}, {"attention": batch_stats}


def golden_model(name, dtype):
    """(arrays, model, variables, what modules give) of a golden file "cvt_*"."""
    arrays, config, weights = golden_body(name)
    spec = config["spec"]
    assert config["act"] == "quick_gelu(1.702)" and set(spec["QKV_PROJ_METHOD"]) == {"dw_bn"}
    widths, depths = tuple(spec["DIM_EMBED"]), tuple(spec["DEPTH"])
    model = CvT(
        OverlapPatchEmbed(widths[0], dtype=dtype),
        num_classes=config["num_classes"],
        image_size=arrays["x"].shape[1:3],
        widths=widths,
        depths=depths,
        heads=tuple(spec["NUM_HEADS"]),
        dtype=dtype,
    )
    params = {
        "class_token": weights["stage2.cls_token"],
        "norm": norm(weights, "norm"),
        "head": linear(weights, "head"),
        "embedding": {"convolution": convolution(weights, "stage0.patch_embed.proj")},
    }
    batch_stats, activations = {}, {}
    for stage, depth in enumerate(depths):
        params[f"embedding_norms_{stage}"] = norm(weights, f"stage{stage}.patch_embed.norm")
        activations[f"embedding_norms_{stage}"] = last(arrays[f"act/stage{stage}.patch_embed"])
        if stage:
            params[f"downsampling_{stage - 1}"] = convolution(weights, f"stage{stage}.patch_embed.proj")
        for index in range(depth):
            own, theirs = f"blocks_{sum(depths[:stage]) + index}", f"stage{stage}.blocks.{index}"
            params[own], batch_stats[own] = block(weights, f"{theirs}.")
            activations |= {own: arrays[f"act/{theirs}"], f"{own}/attention": arrays[f"act/{theirs}.attn"]}
    return arrays, model, {"params": params, "batch_stats": batch_stats}, activations


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"), [("cvt_img36x44", np.float64), ("cvt_img36x44", np.float32), ("cvt_img32", np.float64)]
)
def test_models_equal_the_golden_numbers(name, dtype):
    arrays, model, variables, activations = golden_model(name, dtype)
    gradients = {
        "embedding/convolution/kernel": arrays["grad/stage0.patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "blocks_1/attention/key_projection/kernel": arrays[
            "grad/stage1.blocks.0.attn.conv_proj_k.conv.weight"
        ].transpose(2, 3, 1, 0),
        "class_token": arrays["grad/stage2.cls_token"],
    }
    activations = activations if dtype == np.float64 else None
    check_body(arrays, model, variables, dtype, gradients=gradients, activations=activations)


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
    """(a tiny model, variables of noise, which need not be compiled)."""
    model, rng = create_model("cvt_13", num_classes=3, image_size=16, **{**TINY, **options}), np.random.default_rng(0)

    def draw(path, leaf):
        noise = 0.5 * rng.normal(size=leaf.shape)
        return jnp.asarray(1 + noise**2 if path[-1].key in ("scale", "var") else noise, leaf.dtype)

    return model, jax.tree_util.tree_map_with_path(draw, abstract_variables(model, 16))


def images(seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(2, 16, 16, 3)), jnp.float32)


def logits_of(model, variables):
    return jax.jit(lambda variables: model.apply(variables, images(), train=False))(variables)


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
                images(),
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
def test_remat_changes_nothing():
    model, variables = tiny()

    def loss(model, variables):
        logits, new = model.apply(variables, images(), train=True, mutable=["batch_stats"])
        return (logits**2).sum(), new

    plain, again = (
        jax.jit(jax.value_and_grad(functools.partial(loss, model.clone(remat=remat)), has_aux=True))(variables)
        for remat in (False, True)
    )
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_any_embedding_and_image_size_and_bfloat16():
    options = {"embedding": "stce", "stem_widths": (8,), "stem_strides": (2,), "cell": (2, 3), "dtype": "bfloat16"}
    model, variables = tiny(**options)
    assert model.grid(37, 32) == (5, 3)
    logits, tokens = jax.jit(
        lambda variables: [
            model.apply(variables, jnp.ones((1, 37, 32, 3)), train=False, method=method)
            for method in ("__call__", "tokens")
        ]
    )(variables)
    assert logits.dtype == jnp.float32 and tokens.values.dtype == jnp.bfloat16
    assert tokens.shape == (1, 1 + 15, 12) and tokens.grid == (5, 3) and tokens.leading == 1


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
    with pytest.raises(ConfigError) as error:
        create_model("cvt_13", **{"num_classes": 3, "image_size": 32, **TINY, **options})
    assert message in str(error.value) and "\n" not in str(error.value)
