"""Distances between tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from stce_jax.models.ops.distances import squared_distances


@pytest.mark.parametrize("count", [1, 9, 16])
def test_distances_are_exact_where_tokens_are_close(count):
    rng = np.random.default_rng(0)
    points = 100.0 + rng.normal(size=(2, count, 5)) * np.geomspace(1e-4, 1.0, count)[:, None]
    points = points.astype(np.float32)
    squared = jax.jit(squared_distances)(points)
    expected = np.square(points[:, :, None].astype(float) - points[:, None]).sum(axis=-1)
    np.testing.assert_allclose(squared, expected, rtol=1e-6)
    assert (np.diagonal(squared, axis1=1, axis2=2) == 0).all()
    np.testing.assert_array_equal(squared, squared.swapaxes(1, 2))


def test_an_empty_batch_and_one_of_symbolic_size():
    assert jax.eval_shape(squared_distances, jnp.zeros((0, 9, 5))).shape == (0, 9, 9)
    (batch,) = export.symbolic_shape("b")
    exported = export.export(jax.jit(squared_distances))(jax.ShapeDtypeStruct((batch, 9, 5), jnp.bfloat16))
    assert exported.call(jnp.ones((3, 9, 5), jnp.bfloat16)).shape == (3, 9, 9)
    assert exported.out_avals[0].dtype == jnp.float32


def test_no_array_of_all_differences():
    """Memory grows with n D and n n, not with n n D."""
    compiled = jax.jit(squared_distances).lower(jax.ShapeDtypeStruct((2, 196, 384), jnp.float32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * 4 * 2 * 196 * (384 + 196)
