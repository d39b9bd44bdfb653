"""The value that flows between blocks: what travels with it, and that it may stand for an array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stce_jax.models.tokens import Tokens

VALUES = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)


def test_tokens_are_a_pytree_with_static_grid_and_leading_count():
    tokens = Tokens(jnp.asarray(VALUES), grid=(2, 3), leading=1)
    doubled = jax.jit(lambda tokens: jax.tree.map(lambda leaf: 2 * leaf, tokens))(tokens)
    assert (doubled.grid, doubled.leading, doubled.sizes, doubled.mask) == ((2, 3), 1, None, None)
    np.testing.assert_array_equal(doubled.values, 2 * VALUES)


def test_tokens_may_stand_for_an_array_of_their_values():
    tokens = Tokens(jnp.asarray(VALUES))
    assert tokens.shape == (2, 6, 4) and tokens.dtype == jnp.float32 and tokens.ndim == 3
    np.testing.assert_array_equal(np.asarray(tokens), VALUES)
    np.testing.assert_array_equal(tokens[:, 0], VALUES[:, 0])
    np.testing.assert_allclose(tokens.mean(axis=1), VALUES.mean(axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jnp.sin(tokens), np.sin(VALUES), rtol=1e-5)
    with pytest.raises(AttributeError, match="no_such"):
        tokens.no_such  # noqa: B018


def test_leading_tokens_are_real_and_stand_for_one():
    mask = jnp.asarray([[True] * 5 + [False]] * 2)
    tokens = Tokens(jnp.asarray(VALUES), sizes=jnp.full((2, 6), 3.0), mask=mask, grid=(2, 3))
    joined = tokens.prepend(jnp.zeros((2, 1, 4)))
    assert joined.shape == (2, 7, 4) and joined.leading == 1 and joined.grid == (2, 3)
    np.testing.assert_array_equal(joined.sizes[:, 0], 1)
    np.testing.assert_array_equal(joined.mask[:, 0], True)
    np.testing.assert_array_equal(joined.image_values(), VALUES)
    first = joined.first(1)
    assert first.shape == (2, 1, 4) and first.sizes.shape == first.mask.shape == (2, 1) and first.grid is None


def test_a_policy_goes_with_the_tokens_and_weighs_in_the_mean():
    policy = jnp.asarray([[1.0, 0, 1, 0, 0, 1], [0.0] * 6])
    tokens = Tokens(jnp.asarray(VALUES), policy=policy).prepend(jnp.zeros((2, 1, 4)))
    np.testing.assert_array_equal(tokens.policy[:, 0], 1)
    np.testing.assert_array_equal(tokens.select(np.array([0, 1, 3])).policy, [[1, 1, 1], [1, 0, 0]])
    assert tokens.first(1).policy.shape == (2, 1)
    np.testing.assert_allclose(tokens.pooled_mean()[0], VALUES[0, [0, 2, 5]].mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(tokens.pooled_mean()[1], 0)  # where none is live


def test_the_pooled_mean_weighs_by_size_and_mask():
    rng = np.random.default_rng(1)
    sizes = rng.uniform(1, 4, (2, 6)).astype(np.float32)
    mask = np.array([[1, 1, 1, 0, 1, 0], [1, 0, 1, 1, 1, 1]], bool)
    values = np.where(mask[..., None], VALUES, np.nan)  # what is masked may be anything
    tokens = Tokens(jnp.asarray(values), sizes=jnp.asarray(sizes), mask=jnp.asarray(mask))
    weights = sizes * mask
    expected = (VALUES * weights[..., None]).sum(axis=1) / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(tokens.pooled_mean(), expected, rtol=1e-5, atol=1e-6)
    with_class = tokens.prepend(jnp.full((2, 1, 4), 100.0))
    np.testing.assert_allclose(with_class.pooled_mean(), expected, rtol=1e-5, atol=1e-6)
    plain = Tokens(jnp.asarray(VALUES)).pooled_mean()
    np.testing.assert_allclose(plain, VALUES.mean(axis=1), rtol=1e-5, atol=1e-6)
