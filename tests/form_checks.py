"""An operation beside its plain form: outputs and gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np


def check_form(operation, plain, shapes, dtype, tolerance):
    """Asserts that both give the same of random operands, with gradients; relative to each array's largest."""
    rng = np.random.default_rng(0)
    operands = [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]
    expected, pull_back_plain = jax.vjp(plain, *operands)
    outputs, pull_back = jax.vjp(jax.jit(operation), *operands)
    cotangent = jnp.asarray(rng.normal(size=expected.shape), dtype)
    ours, theirs = (outputs, pull_back(cotangent)), (expected, pull_back_plain(cotangent))
    chex.assert_trees_all_equal_dtypes(ours, theirs)
    ours, theirs = jax.tree.map(lambda array: array.astype(jnp.float32), (ours, theirs))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * np.abs(other).max())
