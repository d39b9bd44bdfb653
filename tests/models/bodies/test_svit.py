"""SViT against the golden numbers of its published code, its sizes, and what its options refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import EXACT, assert_close, golden, last, linear, norm, statistics, weights_of
from golden_svit import block, check, merging, stem

from stce_jax.errors import ConfigError
from stce_jax.models.batch_norms import BATCH_NORM_MOMENTUM
from stce_jax.models.bodies.svit import SuperTokenBlock, SViT
from stce_jax.models.embeddings.svit import SViTEmbed
from stce_jax.models.factory import create_model, list_models, model_options

TINY = {"widths": (8, 12), "depths": (1, 1), "heads": (2, 3), "cells": (2, 1), "layer_scale": (0.0, 0.1)}
TINY |= {"mlp_ratio": 2, "head_width": 16, "drop_path": 0.0}
PARAMETERS = {"svit_s": 25_495_624, "svit_b": 51_691_288, "svit_l": 94_971_096}  # 1000 classes


def golden_block(name, dtype):
    """(arrays, block, variables) of a golden file "svit_block_*"."""
    arrays = golden("reductions", name)
    weights = weights_of(arrays)
    module = SuperTokenBlock(
        int(arrays["cfg_heads"]),
        tuple(map(int, arrays["cfg_stoken_size"])),
        len(weights["mlp2.fc1.bias"]),
        layer_scale=0.5 * int(arrays["cfg_layerscale"]),
        dtype=dtype,
    )
    return arrays, module, block(weights)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("svit_block_16x16_s8", np.float64),
        ("svit_block_7x7_s1_layerscale", np.float64),
        ("svit_block_7x7_s1_layerscale", np.float32),
    ],
)
def test_blocks_equal_the_golden_numbers(name, dtype):
    arrays, module, variables = golden_block(name, dtype)

    def run(variables, features):
        return module.apply(variables, features, None, False)

    inputs, expected = (last(arrays["in_x"]),), ({}, (last(arrays["grad_x"]),))
    check(run, variables, inputs, last(arrays["cotangent"]), last(arrays["out_x"]), expected, dtype)


@pytest.mark.slow
def test_a_block_in_training_equals_the_golden_numbers():
    dtype = np.float64
    arrays, module, variables = golden_block("svit_block_8x8_s4_train", dtype)

    def run(variables, features):
        outputs, changed = module.apply(variables, features, None, True, mutable=["batch_stats"])
        return outputs, changed["batch_stats"]["mlp_norm"]

    inputs, expected = (last(arrays["in_x"]),), ({}, (last(arrays["grad_x"]),))
    outputs, cotangent = last(arrays["out_x"]), last(arrays["cotangent"])
    check(lambda *inputs: run(*inputs)[0], variables, inputs, cotangent, outputs, expected, dtype)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), variables)
        new = jax.device_get(jax.jit(run)(wide, *inputs)[1])
    assert_close(new["mean"], arrays["out_bn_running_mean"], EXACT, "running mean")
    # PyTorch keeps the unbiased variance of the batch, flax and this package the biased one.
    count = np.prod(arrays["in_x"].shape) // arrays["in_x"].shape[1]
    old = BATCH_NORM_MOMENTUM * variables["batch_stats"]["mlp_norm"]["var"].astype(np.float64)
    unbiased = old + (new["var"] - old) * count / (count - 1)
    assert_close(unbiased, arrays["out_bn_running_var"], EXACT, "running variance")


def golden_model(name, dtype):
    """(arrays, model, variables) of a golden file "svit_model_*"."""
    arrays = golden("reductions", name)
    weights = weights_of(arrays)
    narrow, first = len(weights["patch_embed.proj.0.bias"]), len(weights["patch_embed.proj.6.bias"])
    embedding = SViTEmbed((narrow, narrow, first, first), dtype=dtype)
    depths = tuple(map(int, arrays["cfg_depths"]))
    options = {f"{option}s": tuple(map(int, arrays[f"cfg_{option}"])) for option in ("heads", "stoken_size")}
    model = SViT(
        embedding,
        num_classes=len(weights["head.bias"]),
        image_size=arrays["in_image"].shape[2:],
        widths=tuple(len(weights[f"layers.{stage}.blocks.0.norm2.weight"]) for stage in range(len(depths))),
        depths=depths,
        heads=options["headss"],
        cells=options["stoken_sizes"],
        mlp_ratio=int(arrays["cfg_mlp_ratio"]),
        layer_scale=(0.0,) * len(depths),
        head_width=int(arrays["cfg_projection"]),
        dtype=dtype,
    )
    parts = {"embedding": stem(weights, "patch_embed.")}
    for stage, depth in enumerate(depths):
        for index in range(depth):
            parts[f"blocks_{sum(depths[:stage]) + index}"] = block(weights, f"layers.{stage}.blocks.{index}.")
        if stage + 1 < len(depths):
            parts[f"merging_{stage}"] = merging(weights, f"layers.{stage}.downsample.")
    variables = {kind: {own: part[kind] for own, part in parts.items()} for kind in ("params", "batch_stats")}
    variables["params"] |= {
        "projection": linear(weights, "proj"),
        "norm": norm(weights, "norm"),
        "head": linear(weights, "head"),
    }
    variables["batch_stats"]["norm"] = statistics(weights, "norm")
    return arrays, model, variables


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"), [("svit_model_64", np.float64), ("svit_model_32_onestage_w48_d3", np.float32)]
)
def test_models_equal_the_golden_numbers(name, dtype):
    arrays, model, variables = golden_model(name, dtype)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == arrays["info_trainable_params"]

    def run(variables, images):
        return model.apply(variables, images, train=False)

    inputs, expected = (last(arrays["in_image"]),), ({}, (last(arrays["grad_image"]),))
    check(run, variables, inputs, arrays["cotangent"], arrays["out_logits"], expected, dtype)


@pytest.mark.parametrize(
    "name", ["svit_s", *(pytest.param(name, marks=pytest.mark.slow) for name in ("svit_b", "svit_l"))]
)
def test_the_published_sizes_have_their_parameters(name):
    model = create_model(name, num_classes=1000)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), train=False))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == PARAMETERS[name]
    assert model.grid(224, 224) == (7, 7) and model.grid(225, 257) == (8, 9)


def test_its_names_are_those_of_the_published_models_and_those_with_another_embedding():
    assert {*PARAMETERS, "svit_s_stce", "svit_l_patch"} < set(list_models("*svit*"))
    assert not list_models("vit_*_svit")
    assert model_options("svit_s_stce")["stem_widths"] == (16, 32) and model_options("svit_s_patch")["patch_size"] == 4
    assert model_options("svit_s")["stem_widths"] == (32, 32, 64, 64)
    assert model_options("svit_l")["stem_widths"] == (48, 48, 96, 96)
    assert create_model("vit_ti_patch", num_classes=2, embedding="svit").embedding.stem_widths[-1] == 192


@functools.cache
def tiny_variables(**options):
    """(a tiny model, variables of noise, which need not be compiled)."""
    model, rng = create_model("svit_s", num_classes=3, image_size=16, **{**TINY, **options}), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), train=False))
    return model, jax.tree.map(lambda leaf: jnp.asarray(0.5 + 0.2 * rng.normal(size=leaf.shape), leaf.dtype), shapes)


def images(seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(2, 16, 16, 3)), jnp.float32)


@pytest.mark.slow
def test_training_updates_statistics_and_draws_paths():
    model, variables = tiny_variables()
    model = model.clone(drop_path=0.9)

    @jax.jit
    def train(variables, key):
        return model.apply(variables, images(), train=True, mutable=["batch_stats"], rngs={"dropout": key})

    one, new = train(variables, jax.random.key(1))
    other, _ = train(variables, jax.random.key(2))
    assert np.isfinite(one).all() and not np.allclose(one, other)
    changed = jax.tree.map(lambda old, new: bool((old != new).any()), variables["batch_stats"], new["batch_stats"])
    assert all(jax.tree.leaves(changed)), changed


@pytest.mark.slow
def test_remat_changes_nothing():
    """In float64: the gradients of two images through BatchNorm are too ill-conditioned to compare in float32."""
    model, variables = tiny_variables()

    def loss(model, variables, inputs):
        logits, new = model.apply(variables, inputs, train=True, mutable=["batch_stats"])
        return (logits**2).sum(), new

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (variables, images()))
        plain, again = (
            jax.jit(
                jax.value_and_grad(functools.partial(loss, model.clone(dtype=jnp.float64, remat=remat)), has_aux=True)
            )(*wide)
            for remat in (False, True)
        )
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_any_embedding_and_image_size_and_bfloat16():
    options = {"embedding": "stce", "stem_widths": (8,), "stem_strides": (2,), "cell": (2, 3), "dtype": "bfloat16"}
    model, variables = tiny_variables(**options)
    assert model.grid(37, 32) == (5, 3)
    logits, tokens = jax.jit(
        lambda variables: [
            model.apply(variables, jnp.ones((1, 37, 32, 3)), train=False, method=method)
            for method in ("__call__", "tokens")
        ]
    )(variables)
    assert logits.dtype == jnp.float32 and tokens.values.dtype == jnp.bfloat16
    assert tokens.shape == (1, 15, 16) and tokens.grid == (5, 3)


def test_a_cell_of_two_sides_from_a_config_of_json():
    model = create_model("svit_s", num_classes=3, image_size=32, **{**TINY, "cells": [[2, 3], 1]})
    assert model.cells == ((2, 3), 1) and model.unshaped_options()["cells"] == ((2, 3), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": 8}, "widths is 8; it must be a list with an entry for each stage"),
        ({"widths": ()}, "widths is (); it must be a list"),
        ({"widths": ("a", 12)}, "an entry of model option widths is 'a'"),
        ({"depths": (1,)}, "depths has 1 entries, widths 2"),
        ({"depths": (0, 1)}, "an entry of model option depths is 0"),
        ({"heads": (3, 3)}, "width 8 cannot be divided among 3 heads"),
        ({"cells": (2, 0)}, "cell is 0"),
        ({"layer_scale": (0.0, -1.0)}, "layer_scale is -1.0"),
        ({"association_iterations": 0}, "association_iterations is 0"),
        ({"mlp_ratio": 0}, "mlp_ratio is 0"),
        ({"head_width": 0}, "head_width is 0"),
        ({"drop_path": 1.0}, "drop_path is 1.0"),
        ({"stem_widths": (4, 4, 8, 16)}, "must end with the model's width, 8"),
        ({"reduction": "topk"}, "the body 'svit' takes no token reduction"),
    ],
)
def test_options_that_cannot_work_are_refused_in_one_line(options, message):
    with pytest.raises(ConfigError) as error:
        create_model("svit_s", num_classes=3, image_size=32, **{**TINY, **options})
    assert message in str(error.value) and "\n" not in str(error.value)
