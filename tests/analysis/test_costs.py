"""Multiply-adds against counts made by hand."""

import jax
import jax.numpy as jnp
import pytest

from stce_jax.analysis.costs import count_multiply_adds
from stce_jax.verbs.summary import summarize


def test_products_convolutions_and_scans():
    x = jnp.zeros((3, 4))
    assert count_multiply_adds(lambda a, b: a @ b, x, jnp.zeros((4, 5))) == 3 * 4 * 5
    images, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 6))

    def convolve(images, kernel):
        return jax.lax.conv_general_dilated(images, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert count_multiply_adds(convolve, images, kernel) == 2 * 4 * 4 * 6 * 3 * 3 * 3

    def scanned(x):
        return jax.lax.scan(lambda carry, _: (carry @ jnp.zeros((4, 4)), None), x, None, length=7)[0]

    assert count_multiply_adds(jax.jit(scanned), x) == 7 * 3 * 4 * 4


@pytest.mark.slow
def test_vit_s_patch_by_hand():
    (row,) = summarize("vit_s_patch")
    tokens, width, mlp = 197, 384, 1152
    block = tokens * width * (4 * width + 2 * mlp) + 2 * tokens * tokens * width
    # Of the class token alone, which is projected once as a query and once among the keys and values.
    last = (tokens + 1) * width * 3 * width + 2 * tokens * width + width * (width + 2 * mlp)
    assert row["multiply_adds"] == 196 * 768 * width + 11 * block + last + width * 100


def test_of_forms_for_platforms_the_default_counts():
    x = jnp.zeros((4, 4))
    choice = {"cpu": lambda x: x @ x @ x, "default": lambda x: x @ x}
    assert count_multiply_adds(lambda x: jax.lax.platform_dependent(x, **choice), x) == 4 * 4 * 4
