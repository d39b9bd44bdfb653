"""Attention against plain NumPy, JAX's own, and its gradient against the one that JAX derives."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference
import pytest

from stce_jax.models import attention

TOKENS = np.random.default_rng(0).normal(size=(2, 5, 12)).astype(np.float32)


def draw(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_attention_equals_numpy_and_sows_its_weights():
    module = attention.Attention(heads=3)
    variables = module.init(jax.random.key(0), TOKENS, train=False)
    assert set(variables) == {"params"}, "initialising keeps what is only sown"
    actual, sown = module.apply(variables, TOKENS, train=False, mutable=["intermediates"])
    expected = numpy_reference.attention(TOKENS, variables["params"], heads=3)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    (weights,) = sown["intermediates"]["attention"]
    assert weights.shape == (2, 3, 5, 5)
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, rtol=1e-5)


def test_the_sown_weights_are_those_of_the_outputs():
    query, key, value = draw(3, 2, 7, 4, 8)
    weights = attention.attention_weights(query, key)
    by_weights = np.einsum("banm,bmae->bnae", weights, value)
    np.testing.assert_allclose(attention.dot_product_attention(query, key, value), by_weights, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_dot_product_attention_equals_jax_with_its_gradient(scale):
    """Scaled by 100, all weights but one of a row vanish, and unshifted exponentials would overflow."""
    operands, cotangent = scale * draw(3, 2, 7, 4, 8), draw(2, 7, 4, 8, seed=2)
    results = []
    for function in (attention.dot_product_attention, jax.nn.dot_product_attention):
        outputs, pull_back = jax.vjp(function, *operands)
        results.append((outputs, pull_back(jnp.asarray(cotangent))))
    chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-5 * scale**2)


def test_bfloat16_attention_accumulates_in_float32():
    operands = jnp.asarray(draw(3, 1, 64, 2, 16, seed=2), jnp.bfloat16)
    cotangent = jnp.asarray(draw(1, 64, 2, 16, seed=3), jnp.bfloat16)
    results = []
    for dtype in (jnp.bfloat16, jnp.float32):
        outputs, pull_back = jax.vjp(attention.dot_product_attention, *operands.astype(dtype))
        results.append((outputs, *pull_back(cotangent.astype(dtype))))
    for ours, exact in zip(*results, strict=True):
        assert ours.dtype == jnp.bfloat16
        error = np.abs(ours.astype(jnp.float32) - exact).max() / np.abs(exact).max()
        assert error < 0.02, f"off by {error:.3f} of the largest"
    assert attention.attention_weights(*operands[:2]).dtype == jnp.float32


class FakeGPU:
    def __init__(self, capability):
        self.compute_capability = capability


@pytest.mark.parametrize(
    "capability, dtype, width, fits",
    [
        ("9.0", jnp.bfloat16, 64, True),
        ("8.0", jnp.float16, 64, True),
        ("7.5", jnp.bfloat16, 64, False),
        ("9.0", jnp.float32, 64, False),
        ("9.0", jnp.bfloat16, 12, False),
        ("9.0", jnp.bfloat16, 256, False),
        (None, jnp.bfloat16, 64, False),
    ],
)
def test_the_fused_kernel_is_asked_for_where_it_exists(monkeypatch, capability, dtype, width, fits):
    device = FakeGPU(capability) if capability else object()
    monkeypatch.setattr(attention.jax, "local_devices", lambda: [device])
    query = jnp.zeros((1, 3, 2, width), dtype)
    assert attention._fused_kernel_fits(query) == fits


def test_a_program_for_the_cpu_takes_the_products_beside_a_gpu(monkeypatch):
    monkeypatch.setattr(attention, "_fused_kernel_fits", lambda query: True)
    monkeypatch.setattr(attention, "attention_by_cudnn", lambda query, key, value: jnp.full_like(query, jnp.nan))
    operands = jnp.asarray(draw(3, 1, 5, 2, 8), jnp.bfloat16)
    actual = jax.jit(attention.dot_product_attention)(*operands)
    expected = jax.jit(attention.attention_by_products)(*operands)
    np.testing.assert_array_equal(actual.astype(jnp.float32), expected.astype(jnp.float32))
