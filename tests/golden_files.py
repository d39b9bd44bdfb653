"""Golden numbers of published implementations, and models of this package with the weights that lie beside them.

A file is looked for in tests/golden, then in the folder of STCE_TEST_DATA, of which tests/golden has the smaller part.
Arrays are called there as in PyTorch: "w.NAME" weights, "in_" inputs, "out_" outputs, "grad_" gradients of
sum(output * cotangent), "cfg_" options.
"""

import os
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from stce_jax.models.bodies.block import Block
from stce_jax.models.bodies.vit import VisionTransformer
from stce_jax.models.tokens import Tokens

COMMITTED = Path(__file__).parent / "golden"
EXACT, SINGLE, SINGLE_GRADIENT = 1e-9, 2e-5, 2e-4  # errors relative to max(1, max|reference|)


def golden(kind, name):
    """{array's name: array} of a file such as ("reductions", "tome_core_t17_r4"); skips the test if it is not there."""
    folders = [COMMITTED, *([Path(data) / "golden"] if (data := os.environ.get("STCE_TEST_DATA")) else [])]
    for folder in folders:
        if (path := folder / kind / f"{name}.npz").exists():
            with np.load(path) as arrays:
                return dict(arrays)
    pytest.skip(f"golden/{kind}/{name}.npz is not committed, and STCE_TEST_DATA does not have it")


def assert_close(actual, expected, tolerance, what):
    """Compares with an error relative to max(1, max|expected|); integers and masks must be equal."""
    expected = np.asarray(expected)
    if expected.dtype.kind in "biu":
        np.testing.assert_array_equal(actual, expected, err_msg=what)
    else:
        largest = max(1.0, np.abs(expected).max(initial=0.0))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * largest, err_msg=what)


def linear(weights, name):
    """PyTorch's linear layer, or its convolution of 1x1, as flax.linen.Dense has it."""
    kernel = weights[f"{name}.weight"]
    params = {"kernel": kernel.reshape(kernel.shape[:2]).T}
    return params | ({"bias": weights[f"{name}.bias"]} if f"{name}.bias" in weights else {})


def convolution(weights, name):
    """PyTorch's convolution, depth-wise or not, as flax.linen.Conv has it."""
    params = {"kernel": weights[f"{name}.weight"].transpose(2, 3, 1, 0)}
    return params | ({"bias": weights[f"{name}.bias"]} if f"{name}.bias" in weights else {})


def statistics(weights, name):
    """The running statistics of a BatchNorm."""
    return {"mean": weights[f"{name}.running_mean"], "var": weights[f"{name}.running_var"]}


def last(array):
    """Channels first -> channels last."""
    return np.moveaxis(array, 1, -1)


def norm(weights, name):
    return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}


def block_params(weights, prefix=""):
    """The parameters of `vit.Block`: weights are {"norm1.weight": ...} behind a prefix such as "blocks.0."."""
    return {
        "attention_norm": norm(weights, f"{prefix}norm1"),
        "attention": {"qkv": linear(weights, f"{prefix}attn.qkv"), "out": linear(weights, f"{prefix}attn.proj")},
        "mlp_norm": norm(weights, f"{prefix}norm2"),
        "mlp": {"in": linear(weights, f"{prefix}mlp.fc1"), "out": linear(weights, f"{prefix}mlp.fc2")},
    }


def weights_of(arrays):
    """{PyTorch's name: array} of a golden file."""
    return {name.removeprefix("w."): array for name, array in arrays.items() if name.startswith("w.")}


class LinearPatches(nn.Module):
    """The patch embedding of DeiT: a linear layer on patches, no LayerNorm."""

    width: int
    patch: int
    dtype: jnp.dtype = jnp.float64

    def grid(self, height, width):
        return height // self.patch, width // self.patch

    @nn.compact
    def __call__(self, images, train=None):
        kernel = (self.patch, self.patch)
        values = nn.Conv(self.width, kernel, kernel, padding="VALID", dtype=self.dtype, name="convolution")(images)
        return Tokens(values.reshape(len(images), -1, self.width), grid=values.shape[1:3])


def vision_transformer(arrays, reduction, dtype, reduction_params=None):
    """(model, variables) of a golden file "*_model_*".

    Args:
      arrays: of `golden`.
      reduction: a module of `reductions`.
      dtype: of the computation and the variables.
      reduction_params: function (weights, stage) -> the reduction's parameters; None: it has none.
    """
    weights, patch = weights_of(arrays), int(arrays["cfg_patch"])
    depth = sum(name.endswith("norm1.weight") for name in weights)
    width = weights["cls_token"].shape[-1]
    model = VisionTransformer(
        LinearPatches(width, patch, dtype),
        num_classes=len(weights["head.bias"]),
        image_size=arrays["in_image"].shape[2:],
        width=width,
        depth=depth,
        heads=int(arrays["cfg_heads"]),
        mlp_dim=int(arrays["cfg_mlp_ratio"]) * width,
        dtype=dtype,
        reduction=reduction,
    )
    params = {
        "embedding": {
            "convolution": {
                "kernel": weights["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
                "bias": weights["patch_embed.proj.bias"],
            }
        },
        "class_token": weights["cls_token"],
        "position_embedding": weights["pos_embed"],
        **{f"blocks_{index}": block_params(weights, f"blocks.{index}.") for index in range(depth)},
        "norm": norm(weights, "norm"),
        "head": linear(weights, "head"),
    }
    if reduction_params:
        before = int(getattr(reduction, "before", False))
        for stage, block in enumerate(sorted(reduction.blocks)):
            params[f"blocks_{block - before}"]["reduction"] = reduction_params(weights, stage)
    return model, {"params": jax.tree.map(lambda array: np.asarray(array, dtype), params)}


def check_vision_transformer(arrays, reduction, dtype, reduction_params=None, *, counts_are_bounds=False):
    """Compares logits, counts of tokens, class tokens and gradients with a golden file "*_model_*".

    With `counts_are_bounds` there may be more tokens than in the file, which are masked. Returns what the model has
    sown, and each block's tokens as its "__call__".
    """
    outputs, gradients = (EXACT, 1e-6) if dtype == np.float64 else (SINGLE, SINGLE_GRADIENT)  # gradients are float32
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        model, variables = vision_transformer(arrays, reduction, dtype, reduction_params)
        images = jnp.asarray(arrays["in_image"].transpose(0, 2, 3, 1), dtype)

        @jax.jit
        def run(variables, images):
            return model.apply(variables, images, train=False, capture_intermediates=_is_block, mutable="intermediates")

        @jax.jit
        @jax.grad
        def gradient(variables_and_images):
            logits = model.apply(*variables_and_images, train=False)
            return (logits * arrays["cotangent"].astype(logits.dtype)).sum()

        logits, captured = run(variables, images)
        dvariables, dimages = gradient((variables, images))
    blocks = [captured["intermediates"][f"blocks_{index}"]["__call__"][0] for index in range(model.depth)]
    assert_close(logits, arrays["out_logits"], outputs, "logits")
    assert logits.dtype == dtype
    before = int(getattr(reduction, "before", False))
    # What acts before a block belongs to the block before, and the last computes the class token alone.
    counts = [int(tokens.shape[1]) for tokens in blocks[:-1]]
    expected = list(arrays["out_token_counts"])
    expected_counts = expected[before : len(counts) + before]
    if counts_are_bounds:
        assert np.all(np.array(counts) >= expected_counts), "tokens after each block"
    else:
        assert counts == expected_counts, "tokens after each block"
        assert model.token_counts(*model.image_size) == [count - 1 for count in expected]
    class_tokens = np.stack([tokens.values[:, 0] for tokens in blocks])
    assert_close(class_tokens, arrays["out_cls_after_block"], outputs, "class tokens")
    rows, columns = model.grid(*model.image_size)
    assert rows * columns + 1 == variables["params"]["position_embedding"].shape[1]
    assert_close(dimages.transpose(0, 3, 1, 2), arrays["grad_image"], gradients, "gradient of the image")
    dpositions = dvariables["params"]["position_embedding"]
    assert_close(dpositions, arrays["grad_pos_embed"], gradients, "gradient of the position embedding")
    return captured["intermediates"]


def check_block(arrays, reduction, dtype, tokens=None):
    """Compares a block that reduces within itself with a golden file "*_block_*"; returns the tokens it gives."""
    outputs, gradients = (EXACT, EXACT) if dtype == np.float64 else (SINGLE, SINGLE_GRADIENT)
    weights = weights_of(arrays)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        params = jax.tree.map(lambda array: np.asarray(array, dtype), block_params(weights))
        block = Block(
            heads=int(arrays["cfg_heads"]),
            mlp_dim=len(weights["mlp.fc1.bias"]),
            dtype=dtype,
            reduction=reduction,
            epsilon=float(arrays["cfg_ln_eps"]),
        )
        if tokens is None:
            tokens = Tokens(None, leading=1, initial_grid=(1, arrays["in_x"].shape[1] - 1))

        @jax.jit
        def run(values):
            return block.apply({"params": params}, tokens.with_values(values), None, None, False)

        @jax.jit
        @jax.grad
        def gradient(values):
            return (run(values).values * arrays["cotangent"].astype(dtype)).sum()

        values = jnp.asarray(arrays["in_x"], dtype)
        reduced, dvalues = run(values), gradient(values)
    assert reduced.values.dtype == dtype
    assert_close(reduced.values, arrays["out_x"], outputs, "tokens")
    assert_close(dvalues, arrays["grad_x"], gradients, "gradient")
    return reduced


def check_blocks(arrays, reduction, dtype, reduction_params=None):
    """Compares what acts before a block, and that block, with a golden file "*_block_*"; with a block before it, too.

    Args:
      arrays: of `golden`; weights "block0." and "block1.", or "block." where the reduction needs no block before.
      reduction: a module of `reductions` that acts before its blocks.
      dtype: of the computation and the variables.
      reduction_params: function of weights -> its parameters; None: it has none.
    """
    outputs, gradients = (EXACT, EXACT) if dtype == np.float64 else (SINGLE, SINGLE_GRADIENT)
    weights = weights_of(arrays)
    paired = "block0.norm1.weight" in weights
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):

        def block(prefix, own_reduction=None):
            module = Block(
                heads=int(arrays["cfg_heads"]),
                mlp_dim=len(weights[f"{prefix}mlp.fc1.bias"]),
                dtype=dtype,
                reduction=own_reduction,
                epsilon=float(arrays["cfg_ln_eps"]),
            )
            return module, cast(block_params(weights, prefix))

        def cast(params):
            return jax.tree.map(lambda array: np.asarray(array, dtype), params)

        own = cast(reduction_params(weights)) if reduction_params else {}

        @jax.jit
        def run(values):
            tokens = Tokens(values, leading=1, initial_grid=(1, values.shape[1] - 1))
            if paired:
                module, params = block("block0.", reduction)
                reduced, left = module.apply(
                    {"params": params | ({"reduction": own} if own else {})},
                    *(tokens, None, None, False),
                    mutable="intermediates",
                )
                left = left["intermediates"]["reduction"]
            else:
                reduced, left = reduction.apply({"params": own}, tokens, {}, train=False, mutable="intermediates")
                left = left["intermediates"]
            module, params = block("block1." if paired else "block.")
            return module.apply({"params": params}, reduced, None, None, False), reduced, left["assignment"][0]

        @jax.jit
        @jax.grad
        def gradient(values):
            return (run(values)[0].values * arrays["cotangent"].astype(dtype)).sum()

        values = jnp.asarray(arrays["in_x"], dtype)
        tokens, reduced, assignment = run(values)
        dvalues = gradient(values)
    assert tokens.values.dtype == dtype
    assert_close(reduced.values, arrays["mid_x"], outputs, "tokens that enter the block")
    assert_close(tokens.values, arrays["out_x"], outputs, "tokens")
    assert_close(dvalues, arrays["grad_x"], gradients, "gradient")
    assert_close(assignment, arrays["out_cluster_idx"], 0, "clusters")


def _is_block(module, _):
    return isinstance(module, Block)


def sown(module, *args, **kwargs):
    """(outputs, {name: array} of "intermediates") of a reduction without parameters, run by itself."""
    outputs, left = module.apply({}, *args, **kwargs, mutable=["intermediates"])
    flat = flax.traverse_util.flatten_dict(dict(left.get("intermediates", {})))
    return outputs, {path[-1]: value[0] for path, value in flat.items()}
