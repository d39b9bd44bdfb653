"""Patch dropout by itself: who stays, and when; in a whole model see test_ingredients.py."""

import jax
import jax.numpy as jnp
import numpy as np

from stce_jax.models.bodies.patch_dropout import PatchDropout, kept_count
from stce_jax.models.tokens import Tokens


def test_patch_dropout_keeps_some_of_each_image_in_training_alone():
    values = np.arange(2 * 12, dtype=np.float32).reshape(2, 12, 1)
    tokens = Tokens(jnp.asarray(values), leading=2, grid=(2, 5), mask=jnp.asarray(values[..., 0] > 3))
    module = PatchDropout(0.45)

    def drop(train, seed=0):
        return module.apply({}, tokens, train, rngs={"dropout": jax.random.key(seed)})

    assert drop(False) is tokens
    first, again, other = drop(True), drop(True), drop(True, 1)
    assert first.shape == (2, 2 + 5, 1) == (2, 2 + kept_count(0.45, 10), 1) and first.grid is None
    np.testing.assert_array_equal(first.values, again.values)
    assert (np.asarray(first.values) != np.asarray(other.values)).any(), "another key, the same tokens"
    assert (np.asarray(first[0]) + 12 != np.asarray(first[1])).any(), "images share a draw"
    for image in range(2):
        kept = np.asarray(first[image, :, 0])
        np.testing.assert_array_equal(kept[:2], values[image, :2, 0])
        assert (np.diff(kept) > 0).all() and set(kept) <= set(values[image, :, 0])
        np.testing.assert_array_equal(first.mask[image], kept > 3)
    assert [kept_count(rate, 196) for rate in (0.0, 0.25, 0.5, 0.999)] == [196, 147, 98, 1]
