"""MobileViT against golden numbers of timm's form of it, its sizes, small and odd images, and what options refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_bodies import check_body, golden_body
from golden_files import convolution, last, linear, norm, statistics

from stce_jax.analysis.costs import count_model
from stce_jax.errors import ConfigError
from stce_jax.models.bodies.mobilevit import fold, unfold
from stce_jax.models.factory import create_model, list_models
from stce_jax.training.state import abstract_variables

TINY = {"width": 8, "widths": (12, 12), "token_widths": (8, 6), "depths": (1, 2), "heads": (2, 3), "strides": (2, 1)}
TINY |= {"expansion": 2, "head_width": 16, "dropout": 0.0, "head_dropout": 0.0, "stem_blocks": 1, "stem_expansion": 2}
PARAMETERS = {"s": 5_578_632, "xs": 2_317_848, "xxs": 1_272_024}  # 1000 classes


def joined(parts):
    """({own: params}, {own: statistics}) of {own name: (params, statistics)}, or of {own name: params}."""
    params = {own: part[0] if isinstance(part, tuple) else part for own, part in parts.items()}
    return params, {own: part[1] for own, part in parts.items() if isinstance(part, tuple)}


def batch_norm(weights, name):
    return norm(weights, f"{name}.bn"), statistics(weights, f"{name}.bn")


def inverted_residual(weights, prefix):
    return joined(
        {
            "expand": linear(weights, f"{prefix}conv1_1x1.conv"),
            "expand_norm": batch_norm(weights, f"{prefix}conv1_1x1"),
            "depthwise": convolution(weights, f"{prefix}conv2_kxk.conv"),
            "depthwise_norm": batch_norm(weights, f"{prefix}conv2_kxk"),
            "project": linear(weights, f"{prefix}conv3_1x1.conv"),
            "project_norm": batch_norm(weights, f"{prefix}conv3_1x1"),
        }
    )


def layer(weights, prefix):
    return {
        "attention_norm": norm(weights, f"{prefix}norm1"),
        "qkv": linear(weights, f"{prefix}attn.qkv"),
        "out": linear(weights, f"{prefix}attn.proj"),
        "mlp_norm": norm(weights, f"{prefix}norm2"),
        "mlp_in": linear(weights, f"{prefix}mlp.fc1"),
        "mlp_out": linear(weights, f"{prefix}mlp.fc2"),
    }


def mobilevit_block(weights, prefix, depth):
    return joined(
        {
            "local": convolution(weights, f"{prefix}conv_kxk.conv"),
            "local_norm": batch_norm(weights, f"{prefix}conv_kxk"),
            "widen": linear(weights, f"{prefix}conv_1x1"),
            **{f"layers_{index}": layer(weights, f"{prefix}transformer.{index}.") for index in range(depth)},
            "norm": norm(weights, f"{prefix}norm"),
            "narrow": linear(weights, f"{prefix}conv_proj.conv"),
            "narrow_norm": batch_norm(weights, f"{prefix}conv_proj"),
            "fusion": convolution(weights, f"{prefix}conv_fusion.conv"),
            "fusion_norm": batch_norm(weights, f"{prefix}conv_fusion"),
        }
    )


def golden_model(name, dtype):
    """(arrays, model, variables) of a golden file; all of them are of one network."""
    arrays, config, weights = golden_body(name)
    assert config["stages"][2:] == [
        "ir d1 c24 s2 br4 + mvit dim32 depth2 patch2",
        "ir d1 c24 s2 br4 + mvit dim32 depth1 patch2",
        "ir d1 c32 s2 br4 + mvit dim40 depth1 patch2",
    ]
    depths = (2, 1, 1)
    model = create_model(
        "mobilevit_s",
        num_classes=arrays["logits"].shape[1],
        image_size=arrays["x"].shape[1:3],
        width=16,
        widths=(24, 24, 32),
        token_widths=(32, 32, 40),
        depths=depths,
        head_width=config["num_features"],
        stem_widths=(config["stem"], 8, 16),
        stem_blocks=2,
        stem_expansion=4,
    )
    model = model.clone(dtype=dtype, embedding=model.embedding.clone(dtype=dtype))
    embedding = {
        "convolution": convolution(weights, "stem.conv"),
        "norm": batch_norm(weights, "stem"),
        "stage_0_block_0": inverted_residual(weights, "stages.0.0."),
        "stage_1_block_0": inverted_residual(weights, "stages.1.0."),
        "stage_1_block_1": inverted_residual(weights, "stages.1.1."),
    }
    parts = {"embedding": joined(embedding)}
    for stage, depth in enumerate(depths):
        parts[f"residuals_{stage}"] = inverted_residual(weights, f"stages.{stage + 2}.0.")
        parts[f"blocks_{stage}"] = mobilevit_block(weights, f"stages.{stage + 2}.1.", depth)
    parts |= {"projection": linear(weights, "final_conv.conv"), "norm": batch_norm(weights, "final_conv")}
    parts["head"] = linear(weights, "head.fc")
    params, stats = joined(parts)
    return arrays, model, {"params": params, "batch_stats": stats}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("mobilevit_img48x80_interp", np.float64),
        ("mobilevit_img48x80_interp", np.float32),
        ("mobilevit_img64", np.float64),
    ],
)
def test_equals_the_golden_numbers(name, dtype):
    arrays, model, variables = golden_model(name, dtype)
    gradients = {
        "embedding/convolution/kernel": arrays["grad/stem.conv.weight"].transpose(2, 3, 1, 0),
        "blocks_0/layers_0/qkv/kernel": arrays["grad/stages.2.1.transformer.0.attn.qkv.weight"].T,
    }
    activations = {"embedding/stage_0_block_0": last(arrays["act/stages.0.0"])}
    for stage in range(3):
        activations[f"residuals_{stage}"] = last(arrays[f"act/stages.{stage + 2}.0"])
        activations[f"blocks_{stage}"] = last(arrays[f"act/stages.{stage + 2}.1"])
    check_body(arrays, model, variables, dtype, gradients, activations=activations if dtype == np.float64 else None)


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


def variables_of(model, image_size=32):
    """Noise, which need not be compiled."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.1, 1.0, leaf.shape), leaf.dtype), abstract_variables(model, image_size)
    )


def images(height=32, width=32):
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, height, width, 3)), jnp.float32)


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
    model = tiny(drop_path=0.9, dropout=0.5, head_dropout=0.5)
    variables = variables_of(model)

    def train(model, variables, key):
        def loss(params):
            given, new = model.apply(
                {**variables, "params": params}, images(), train=True, mutable=["batch_stats"], rngs={"dropout": key}
            )
            return (given**2).sum(), (given, new)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    plain, again = (jax.jit(functools.partial(train, model.clone(remat=remat))) for remat in (False, True))
    one, other = plain(variables, jax.random.key(1)), plain(variables, jax.random.key(2))
    assert np.isfinite(one[0][1][0]).all() and not np.allclose(one[0][1][0], other[0][1][0])
    changed = jax.tree.map(lambda old, new: bool((old != new).any()), variables, {**variables, **one[0][1][1]})
    assert all(jax.tree.leaves(changed["batch_stats"]))
    leaves = jax.tree.leaves(one)
    largest = max(np.abs(leaf).max() for leaf in leaves)  # convolutions before a BatchNorm have biases without effect
    for left, right in zip(leaves, jax.tree.leaves(again(variables, jax.random.key(1))), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.slow
def test_any_embedding_and_image_size_and_bfloat16():
    """The map of 5x3 is resized to 6x4 for the transformer."""
    options = {name: value for name, value in TINY.items() if "stem" not in name}
    options |= {"embedding": "stce", "stem_widths": (8,), "stem_strides": (2,), "cell": (2, 3), "strides": (1, 1)}
    model = create_model("mobilevit_s", num_classes=3, image_size=32, dtype="bfloat16", **options)
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), abstract_variables(model, 32))
    assert model.grid(37, 32) == (10, 6)
    logits, tokens = jax.jit(
        lambda variables: [
            model.apply(variables, images(37, 17), train=False, method=method) for method in ("__call__", "tokens")
        ]
    )(variables)
    assert logits.dtype == jnp.float32 and tokens.values.dtype == jnp.bfloat16
    assert tokens.shape == (2, 30, 16) and tokens.grid == (10, 3)


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
    with pytest.raises(ConfigError) as error:
        tiny(**options)
    assert message in str(error.value) and "\n" not in str(error.value)
