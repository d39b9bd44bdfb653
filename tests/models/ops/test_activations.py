"""GELU against NumPy, flax and its plain form, with its gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference
import pytest
from flax import linen as nn

from stce_jax.models.ops.activations import (
    gelu,
    gelu_derivative,
    gelu_plain,
    quick_gelu,
    quick_gelu_plain,
    silu_gate,
    silu_gate_plain,
)

INPUTS = np.linspace(-6, 6, 1001, dtype=np.float32)


def slopes(form, inputs):
    return jax.vmap(jax.grad(form))(inputs)


def test_gelu_is_the_exact_one_with_its_gradient():
    np.testing.assert_allclose(gelu(INPUTS), numpy_reference.gelu(INPUTS.astype(np.float64)), atol=1e-6)
    flaxs = functools.partial(nn.gelu, approximate=False)
    np.testing.assert_allclose(slopes(gelu, INPUTS), slopes(flaxs, INPUTS), atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 1e-2)])
def test_equals_its_plain_form_with_its_gradient(dtype, tolerance):
    inputs = jnp.asarray(INPUTS, dtype)
    for ours, plain in ((gelu(inputs), gelu_plain(inputs)), (slopes(gelu, inputs), slopes(gelu_plain, inputs))):
        assert ours.dtype == plain.dtype == dtype
        np.testing.assert_allclose(ours.astype(jnp.float32), plain.astype(jnp.float32), atol=tolerance)
    np.testing.assert_allclose(gelu_derivative(INPUTS), slopes(gelu_plain, INPUTS), atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 1e-2)])
def test_quick_gelu_with_its_gradient(dtype, tolerance):
    inputs, expected = jnp.asarray(INPUTS, dtype), INPUTS / (1 + np.exp(-1.702 * INPUTS))
    np.testing.assert_allclose(quick_gelu(INPUTS), expected, atol=1e-6)
    both = (
        (quick_gelu(inputs), quick_gelu_plain(inputs)),
        (slopes(quick_gelu, inputs), slopes(quick_gelu_plain, inputs)),
    )
    for ours, plain in both:
        assert ours.dtype == plain.dtype == dtype
        np.testing.assert_allclose(ours.astype(jnp.float32), plain.astype(jnp.float32), atol=tolerance)


def test_gelu_of_bfloat16_is_rounded_once():
    inputs = jnp.asarray(INPUTS, jnp.bfloat16)
    exact = gelu(inputs.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(gelu(inputs).astype(jnp.float32), exact.astype(jnp.float32))
    exact = slopes(gelu, inputs.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(slopes(gelu, inputs).astype(jnp.float32), exact.astype(jnp.float32))


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2e-2)])
def test_the_gate_of_swiglu_with_its_gradient(dtype, tolerance):
    values = np.cos(3 * INPUTS)
    np.testing.assert_allclose(silu_gate(INPUTS, values), INPUTS / (1 + np.exp(-INPUTS)) * values, atol=1e-5)
    both = jnp.asarray(INPUTS, dtype), jnp.asarray(values, dtype)
    found, expected = (jax.vjp(form, *both)[1](jnp.ones_like(both[0])) for form in (silu_gate, silu_gate_plain))
    for ours, plain in zip(found, expected, strict=True):
        assert ours.dtype == plain.dtype == dtype
        np.testing.assert_allclose(ours.astype(jnp.float32), plain.astype(jnp.float32), atol=tolerance, rtol=tolerance)
