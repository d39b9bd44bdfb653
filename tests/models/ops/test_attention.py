"""Attention against plain NumPy, JAX's own, and its gradient against the one that JAX derives."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference
import pytest

from stce_jax.models.bodies import vit
from stce_jax.models.factory import create_model
from stce_jax.models.layers import Attention
from stce_jax.models.ops import attention

TOKENS = np.random.default_rng(0).normal(size=(2, 5, 12)).astype(np.float32)


def draw(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_attention_equals_numpy_and_sows_its_weights():
    module = Attention(heads=3)
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
    assert attention._has_fused_kernel(width, dtype) == fits
    assert attention.padding(197, 2, 2 * width, dtype) == (3 if fits else 0)


def test_a_program_for_the_cpu_takes_the_products_beside_a_gpu(monkeypatch):
    monkeypatch.setattr(attention, "_has_fused_kernel", lambda width, dtype: True)
    monkeypatch.setattr(attention, "_by_cudnn", lambda query, key, value, count: jnp.full_like(query, jnp.nan))
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        operands = jnp.asarray(draw(3, 1, 5, 2, 8), jnp.bfloat16)
        actual = jax.jit(attention.dot_product_attention)(*operands)
        expected = jax.jit(attention.attention_by_products)(*operands)
    np.testing.assert_array_equal(actual.astype(jnp.float32), expected.astype(jnp.float32))


def test_tokens_beyond_the_count_are_seen_by_none():
    operands, cotangent = draw(3, 2, 8, 3, 4), draw(2, 8, 3, 4, seed=2)
    outputs, pull_back = jax.vjp(lambda *each: attention.dot_product_attention(*each, 5), *operands)
    expected, pull_expected_back = jax.vjp(attention.dot_product_attention, *operands[:, :, :5])
    assert not np.any(outputs[:, 5:]), "they get something"
    np.testing.assert_array_equal(outputs[:, :5], expected)
    gradients = zip(pull_back(jnp.asarray(cotangent)), pull_expected_back(jnp.asarray(cotangent[:, :5])), strict=True)
    for ours, theirs in gradients:
        assert not np.any(ours[:, 5:]), "they give something"
        np.testing.assert_array_equal(ours[:, :5], theirs)


@pytest.mark.parametrize("count", [None, 5])
def test_the_first_queries_alone_give_the_first_outputs(monkeypatch, count):
    monkeypatch.setattr(attention, "_by_cudnn", None)  # has no part in it, GPU or not
    monkeypatch.setattr(attention, "_has_fused_kernel", lambda width, dtype: True)
    query, key, value = draw(3, 2, 8, 3, 4)
    cotangent = draw(2, 2, 3, 4, seed=2)

    def of_all(query, key, value):
        plain = attention.attention_by_products(query[:, :count], key[:, :count], value[:, :count])
        return plain[:, :2]

    expected, pull_expected_back = jax.vjp(of_all, query, key, value)
    outputs, pull_back = jax.vjp(
        lambda *each: attention.dot_product_attention(each[0][:, :2], *each[1:], count), query, key, value
    )
    np.testing.assert_allclose(outputs, expected, atol=1e-6)
    chex.assert_trees_all_close(pull_back(jnp.asarray(cotangent)), pull_expected_back(cotangent), atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"scan_layers": True}, {"remat": True, "drop_path": 0.5}], ids=str)
def test_a_model_that_pads_its_tokens_is_the_same_model(monkeypatch, options):
    small = {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 24, "patch_size": 8, **options}
    model = create_model("vit_ti_patch", num_classes=3, image_size=16, **small)  # 1 + 4 tokens
    images = draw(2, 16, 16, 3)
    variables = model.init(jax.random.key(0), images, train=False)

    def loss(params):
        rngs = {"dropout": jax.random.key(1)}
        outputs, sown = model.apply({"params": params}, images, train=True, rngs=rngs, mutable=["intermediates"])
        return jnp.square(outputs).sum(), sown

    plain = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    monkeypatch.setattr(vit, "padding", lambda count, heads, width, dtype: -count % 8)
    padded = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    chex.assert_trees_all_close(padded, plain, rtol=1e-4, atol=1e-5)
