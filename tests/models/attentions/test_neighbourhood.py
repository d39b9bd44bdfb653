"""Neighbourhood attention against its definition, as attention to all places with a mask, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stce_jax.models.attentions.neighbourhood import NeighbourhoodAttention


def neighbours(place, side, kernel):
    """The `kernel` places nearest to a place of an axis, itself in their middle where the border leaves room."""
    kernel = min(kernel, side)
    nearest = [other for other in range(side) if abs(other - place) <= kernel // 2]
    while len(nearest) < kernel:
        nearest = [nearest[0] - 1, *nearest] if nearest[0] > 0 else [*nearest, nearest[-1] + 1]
    return nearest[:kernel]


def dense(features, params, heads, kernel):
    batch, height, width, channels = features.shape
    qkv = features.reshape(batch, -1, channels) @ params["qkv"]["kernel"] + params["qkv"]["bias"]
    query, key, value = (
        part.reshape(batch, height * width, heads, -1).transpose(0, 2, 1, 3) for part in np.split(qkv, 3, axis=-1)
    )
    logits = query @ key.swapaxes(2, 3) / np.sqrt(channels // heads)
    seen = np.zeros((height * width, height * width), bool)
    for y, x in np.ndindex(height, width):
        for row in neighbours(y, height, kernel):
            for column in neighbours(x, width, kernel):
                here, there = y * width + x, row * width + column
                seen[here, there] = True
                offset = row - y + kernel - 1, column - x + kernel - 1
                logits[:, :, here, there] += params["bias_table"][:, offset[0], offset[1]]
    assert (seen.sum(axis=1) == min(kernel, height) * min(kernel, width)).all()
    weights = np.where(seen, np.exp(logits - logits.max(axis=-1, keepdims=True)), 0.0)
    outputs = (weights / weights.sum(axis=-1, keepdims=True)) @ value
    outputs = outputs.transpose(0, 2, 1, 3).reshape(batch, -1, channels)
    return (outputs @ params["out"]["kernel"] + params["out"]["bias"]).reshape(features.shape)


@pytest.mark.parametrize(
    ("size", "kernel"),
    [((6, 6), 3), *(pytest.param(*case, marks=pytest.mark.slow) for case in [((7, 11), 3), ((13, 8), 5), ((4, 9), 7)])],
)
def test_equals_attention_to_all_places_with_a_mask(size, kernel):
    rng = np.random.default_rng(0)
    module, features = NeighbourhoodAttention(2, kernel, jnp.float64), rng.normal(size=(2, *size, 6))
    with jax.enable_x64(True):
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.asarray(features)))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes["params"])
    assert params["bias_table"].shape == (2, 2 * kernel - 1, 2 * kernel - 1)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        found = jax.jit(module.apply)({"params": jax.tree.map(jnp.asarray, params)}, jnp.asarray(features))
    np.testing.assert_allclose(found, dense(features, params, 2, kernel), rtol=0, atol=1e-12)
