"""What halves maps between stages, against NumPy and the clustering by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stce_jax.models.downsampling import PatchMerging, SuperTokenDownsample
from stce_jax.models.ops.norms import TORCH_LAYER_NORM_EPSILON
from stce_jax.models.ops.supertoken import cluster_super_tokens


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def params_of(channels, normed, features):
    norm = {"scale": 1 + draw(normed, seed=1), "bias": draw(normed, seed=2)}
    return {"norm": norm, "projection": {"kernel": draw(channels, features, seed=3)}}


def layer_norm(values, norm):
    centered = values - values.mean(axis=-1, keepdims=True)
    return (
        centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + TORCH_LAYER_NORM_EPSILON) * norm["scale"]
        + norm["bias"]
    )


@pytest.mark.parametrize("size", [(4, 6), (5, 3)])
def test_merging_joins_neighbours_column_by_column_and_pads_odd_sides(size):
    features, params = draw(2, *size, 3), params_of(12, 12, 6)
    found = jax.jit(PatchMerging(6).apply)({"params": params}, features)
    padded = np.pad(features, ((0, 0), (0, size[0] % 2), (0, size[1] % 2), (0, 0)))
    parts = [padded[:, y::2, x::2] for y, x in ((0, 0), (1, 0), (0, 1), (1, 1))]
    expected = layer_norm(np.concatenate(parts, axis=-1), params["norm"]) @ params["projection"]["kernel"]
    assert found.shape == (2, -(-size[0] // 2), -(-size[1] // 2), 6)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(("size", "iterations"), [((4, 6), 3), ((5, 3), 1)])
def test_super_tokens_take_the_place_of_merged_neighbours(size, iterations):
    features, params = draw(2, *size, 3), params_of(3, 3, 6)
    normed = jnp.asarray(layer_norm(features, params["norm"]))

    @jax.jit
    def both(features, normed):
        module = SuperTokenDownsample(6, iterations)
        return module.apply({"params": params}, features), cluster_super_tokens(normed, 2, iterations)[0]

    found, tokens = both(features, normed)
    assert found.shape == (2, -(-size[0] // 2), -(-size[1] // 2), 6)
    np.testing.assert_allclose(found, tokens @ params["projection"]["kernel"], atol=1e-4)


def test_results_have_the_dtype_of_the_computation():
    for module in (PatchMerging(6, dtype=jnp.bfloat16), SuperTokenDownsample(6, dtype=jnp.bfloat16)):
        outputs, variables = jax.eval_shape(
            lambda m=module: m.init_with_output(jax.random.key(0), jnp.ones((1, 4, 4, 3)))
        )
        assert outputs.dtype == jnp.bfloat16
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
