"""Swin against the golden numbers of its published code and timm's, its sizes, and what its options refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_bodies import check_body, count_parameters, golden_body
from golden_files import assert_close, golden, linear, norm

from stce_jax.analysis.costs import count_model
from stce_jax.errors import ConfigError
from stce_jax.models.bodies.swin import Swin
from stce_jax.models.embeddings.linear_patch import LinearPatchEmbed
from stce_jax.models.factory import create_model, list_models, model_options

TINY = {"widths": (8, 12), "depths": (2, 1), "heads": (2, 3), "window": 2, "mlp_ratio": 2, "drop_path": 0.0}
PARAMETERS = {"swin_t": 28_288_354, "swin_s": 49_606_258, "swin_b": 87_768_224}  # 1000 classes
GOLDEN = ("swin_timm_pad_img44x36_w4", "swin_img32_w4", "swin_img64_w4_shift", "swin_timm_pad_img44x52_w4")


def patches(weight):
    """The kernel of a convolution of patches as that of a product."""
    return weight.transpose(2, 3, 1, 0).reshape(-1, len(weight))


def golden_params(weights, depths):
    """The parameters of `Swin`; the published code has merging at the end of a stage, timm at the start of the next."""
    timm, params = "head.fc.weight" in weights, {}
    for stage, depth in enumerate(depths):
        for index in range(depth):
            prefix = f"layers.{stage}.blocks.{index}."
            params[f"blocks_{sum(depths[:stage]) + index}"] = {
                "attention_norm": norm(weights, f"{prefix}norm1"),
                "attention": {
                    "qkv": linear(weights, f"{prefix}attn.qkv"),
                    "out": linear(weights, f"{prefix}attn.proj"),
                    "bias_table": weights[f"{prefix}attn.relative_position_bias_table"],
                },
                "mlp_norm": norm(weights, f"{prefix}norm2"),
                "mlp": {"in": linear(weights, f"{prefix}mlp.fc1"), "out": linear(weights, f"{prefix}mlp.fc2")},
            }
        if stage + 1 < len(depths):
            prefix = f"layers.{stage + timm}.downsample."
            merging = {"norm": norm(weights, f"{prefix}norm"), "projection": linear(weights, f"{prefix}reduction")}
            params[f"downsampling_{stage}"] = merging
    projection = {"kernel": patches(weights["patch_embed.proj.weight"]), "bias": weights["patch_embed.proj.bias"]}
    return params | {
        "embedding": {"projection": projection},
        "embedding_norm": norm(weights, "patch_embed.norm"),
        "norm": norm(weights, "norm"),
        "head": linear(weights, "head.fc" if timm else "head"),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, np.float64) for name in GOLDEN), *((name, np.float32) for name in GOLDEN[1:3])]
)
def test_models_equal_the_golden_numbers(name, dtype):
    arrays, config, weights = golden_body(name)
    width, depths = config["embed_dim"], tuple(config["depths"])
    model = Swin(
        LinearPatchEmbed(width, config["patch_size"], dtype=dtype),
        num_classes=config["num_classes"],
        image_size=arrays["x"].shape[1:3],
        widths=tuple(width * 2**stage for stage in range(len(depths))),
        depths=depths,
        heads=tuple(config["num_heads"]),
        window=config["window_size"],
        dtype=dtype,
    )
    gradients = {
        "embedding/projection/kernel": patches(arrays["grad/patch_embed.proj.weight"]),
        "blocks_1/attention/bias_table": arrays["grad/layers.0.blocks.1.attn.relative_position_bias_table"],
    }
    if (kernel := arrays.get("grad/layers.0.downsample.reduction.weight")) is not None:
        gradients["downsampling_0/projection/kernel"] = kernel.T
    merging = next(name for name in arrays if name.startswith("act/") and name.endswith("downsample"))
    activations = {"embedding_norm": arrays["act/patch_embed"], "downsampling_0": arrays[merging]}
    for index in range(sum(depths)):
        stage, block = divmod(index, 2)
        activations[f"blocks_{index}"] = arrays[f"act/layers.{stage}.blocks.{block}"]
    variables = {"params": golden_params(weights, depths)}
    check_body(arrays, model, variables, dtype, gradients, activations=activations if dtype == np.float64 else None)
