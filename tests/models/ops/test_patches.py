"""Images cut into patches: the form for CPUs beside the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stce_jax.models.ops import patches


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("patch", [1, 2, 3])
def test_both_forms_have_the_same_numbers(patch, dtype):
    images = jnp.arange(2 * 6 * 12 * 3).reshape(2, 6, 12, 3).astype(dtype)
    found = jax.jit(patches.cut_patches, static_argnums=1)(images, patch)
    expected = patches.cut_patches_plain(images, patch)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected)
    first = np.asarray(images)[1, :patch, patch : 2 * patch].reshape(-1)  # the second of the second image
    np.testing.assert_array_equal(found[1, 1], first)


def joined(patch):
    text = jax.jit(patches.cut_patches, static_argnums=1).lower(jnp.zeros((1, patch, patch, 1)), patch).as_text()
    return text.count("concatenate")


def test_large_patches_are_not_joined_row_by_row():
    assert joined(patches.MOST_ROWS) > 0
    assert joined(patches.MOST_ROWS + 1) == 0
