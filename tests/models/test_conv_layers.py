"""The small modules of feature maps against the golden numbers of SViT's published code, and their initial values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import convolution, golden, last, weights_of
from golden_svit import check, ffn, merging, stem

from stce_jax.models.conv_layers import ConvFFN, ConvMerging, DepthwiseResidual, LayerScale
from stce_jax.models.embeddings.svit import SViTEmbed


def without_training(module):
    return lambda variables, inputs: module.apply(variables, inputs, train=False)


def part(name, weights):
    """(function, variables) of a golden file "svit_part_*"."""
    dtype = np.float64
    if name == "cpe":
        return DepthwiseResidual(dtype).apply, {"params": convolution(weights, "conv")}
    if name == "convffn":
        return ConvFFN(len(weights["fc1.bias"]), dtype).apply, {"params": ffn(weights)}
    if name.startswith("patchmerging"):
        return without_training(ConvMerging(len(weights["proj.0.bias"]), dtype)), merging(weights)
    narrow, width = len(weights["proj.0.bias"]), len(weights["proj.6.bias"])
    embedding = SViTEmbed((narrow, narrow, width, width), dtype=dtype)

    def as_map(variables, images):
        tokens = embedding.apply(variables, images, train=False)
        assert tokens.grid == embedding.grid(*images.shape[1:3])
        return tokens.values.reshape(len(images), *tokens.grid, width)

    return as_map, stem(weights)


@pytest.mark.parametrize(
    "name",
    [
        "cpe",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("convffn", "patchmerging", "patchmerging_odd", "stem", "stem_odd")
        ),
    ],
)
def test_equal_the_golden_numbers_with_their_gradients(name):
    arrays = golden("reductions", f"svit_part_{name}")
    function, variables = part(name, weights_of(arrays))
    inputs, expected = (last(arrays["in_x"]),), ({}, (last(arrays["grad_x"]),))
    check(function, variables, inputs, last(arrays["cotangent"]), last(arrays["out_x"]), expected, np.float64)


@pytest.mark.slow
def test_initial_values_are_those_of_pytorch():
    """Uniform in +-1 / sqrt(fan in), kernels and biases."""
    inputs = jax.ShapeDtypeStruct((1, 4, 4, 16), jnp.float32)
    for module, bounds in (
        (DepthwiseResidual(), {"": 9}),
        (ConvMerging(32), {"convolution": 9 * 16}),
        (ConvFFN(64), {"in": 16, "depthwise": 9, "out": 64}),
    ):
        init = jax.jit(lambda module=module: module.init(jax.random.key(0), jnp.zeros(inputs.shape)))
        params = init()["params"]
        for name, fan_in in bounds.items():
            for leaf in jax.tree.leaves(params[name] if name else params):
                largest = float(jnp.abs(leaf).max()) * fan_in**0.5
                assert 0.7 < largest <= 1, f"{type(module).__name__} {name}: {largest} of the bound"


def test_layer_scale_begins_with_its_initial_value():
    inputs = jnp.ones((1, 2, 2, 3))
    module = LayerScale(1e-6)
    variables = module.init(jax.random.key(0), inputs)
    np.testing.assert_allclose(module.apply(variables, inputs), 1e-6 * inputs)
