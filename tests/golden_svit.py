"""The golden files of SViT's and HCFormer's published code: their weights as variables of this package's modules, and
how outputs and gradients are compared."""

import jax
import jax.numpy as jnp
import numpy as np
from golden_files import EXACT, SINGLE, SINGLE_GRADIENT, assert_close, convolution, linear, norm, statistics

DTYPES = [np.float64, np.float32]


def attention(weights, prefix=""):
    return {"qkv": linear(weights, f"{prefix}qkv"), "out": linear(weights, f"{prefix}proj")}


def ffn(weights, prefix=""):
    return {
        "in": linear(weights, f"{prefix}fc1"),
        "depthwise": convolution(weights, f"{prefix}conv.conv"),
        "out": linear(weights, f"{prefix}fc2"),
    }


def stem(weights, prefix=""):
    params, running = {}, {}
    for index in range(4):
        params[f"convolution_{index + 1}"] = convolution(weights, f"{prefix}proj.{3 * index}")
        params[f"norm_{index + 1}"] = norm(weights, f"{prefix}proj.{3 * index + 2}")
        running[f"norm_{index + 1}"] = statistics(weights, f"{prefix}proj.{3 * index + 2}")
    return {"params": params, "batch_stats": running}


def merging(weights, prefix=""):
    params = {"convolution": convolution(weights, f"{prefix}proj.0"), "norm": norm(weights, f"{prefix}proj.1")}
    return {"params": params, "batch_stats": {"norm": statistics(weights, f"{prefix}proj.1")}}


def block(weights, prefix=""):
    params = {
        "position": convolution(weights, f"{prefix}pos_embed.conv"),
        "attention_norm": norm(weights, f"{prefix}norm1.norm"),
        "attention": attention(weights, f"{prefix}attn.stoken_refine."),
        "mlp_norm": norm(weights, f"{prefix}norm2"),
        "mlp": ffn(weights, f"{prefix}mlp2."),
    }
    for ours, theirs in (("attention_scale", "gamma_1"), ("mlp_scale", "gamma_2")):
        if f"{prefix}{theirs}" in weights:
            params[ours] = {"scale": weights[f"{prefix}{theirs}"].reshape(-1)}
    return {"params": params, "batch_stats": {"mlp_norm": statistics(weights, f"{prefix}norm2")}}


def check(function, variables, inputs, cotangent, outputs, gradients, dtype):
    """Compares function(variables, *inputs) and gradients of sum(outputs * cotangent) with golden ones.

    Args:
      function: of `variables` and `inputs`, arrays in this package's layout.
      variables: a tree of arrays.
      inputs: a tuple of arrays.
      cotangent, outputs: arrays.
      gradients: (of the variables, of the inputs), the first a tree of what is to be compared, or None.
      dtype: of the computation.

    Returns:
      The outputs.
    """
    errors = (EXACT, EXACT) if dtype == np.float64 else (SINGLE, SINGLE_GRADIENT)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        variables, inputs = jax.tree.map(lambda array: np.asarray(array, dtype), (variables, inputs))

        @jax.jit
        def both(variables, inputs):
            found, pull_back = jax.vjp(lambda variables, inputs: function(variables, *inputs), variables, inputs)
            return found, *pull_back(jnp.asarray(cotangent, dtype))

        found, dvariables, dinputs = both(variables, inputs)
    assert found.dtype == dtype
    assert_close(found, outputs, errors[0], "outputs")
    for expected, actual, what in zip(gradients, (dvariables, dinputs), ("variables", "inputs"), strict=True):
        for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
            of = actual
            for key in path:
                of = of[key.key if hasattr(key, "key") else key.idx]
            # Model files have gradients as float32.
            tolerance = max(errors[1], 1e-6) if leaf.dtype == np.float32 else errors[1]
            assert_close(of, leaf, tolerance, f"gradient of the {what} {jax.tree_util.keystr(path)}")
    return found
