"""LayerNorm, MLP, attention, convolution modules and stochastic depth against plain NumPy and flax."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference
import pytest
from flax import linen as nn

from stce_jax.models import conv_layers, layers
from stce_jax.models.tokens import Tokens

TOKENS = np.random.default_rng(0).normal(size=(2, 5, 12)).astype(np.float32)
FEATURES = (3, 5, 4, 6)


@pytest.mark.slow
def test_mlp_equals_numpy():
    module = layers.MLP(hidden=20)
    params = module.init(jax.random.key(0), TOKENS, train=False)["params"]
    expected = numpy_reference.dense(numpy_reference.gelu(numpy_reference.dense(TOKENS, params["in"])), params["out"])
    np.testing.assert_allclose(module.apply({"params": params}, TOKENS, train=False), expected, atol=1e-5)


def test_layer_norm_keeps_its_digits_on_flat_inputs():
    """A nearly constant row far from zero, where a one-pass variance is off by as much as the result."""
    rng = np.random.default_rng(0)
    rows = np.stack([np.full(768, 2.4), 2.4 + 1e-3 * rng.normal(size=768), 10 + 0.1 * rng.normal(size=768)])
    rows = rows.astype(np.float32)
    module = layers.LayerNorm()
    params = module.init(jax.random.key(0), rows)["params"]
    expected = numpy_reference.layer_norm(rows.astype(np.float64), params)
    np.testing.assert_allclose(module.apply({"params": params}, rows), expected, atol=2e-3)


@pytest.mark.slow
def test_layer_norm_equals_flax_with_its_gradient():
    rng = np.random.default_rng(0)
    rows, cotangent = rng.normal(size=(2, 3, 5, 16)).astype(np.float32)
    flax_module = nn.LayerNorm(epsilon=1e-6)
    params = {"scale": rng.normal(size=16).astype("f4"), "bias": rng.normal(size=16).astype("f4")}
    results = []
    for module in (layers.LayerNorm(), flax_module):
        outputs, pull_back = jax.vjp(lambda p, x, module=module: module.apply({"params": p}, x), params, rows)
        results.append((outputs, pull_back(jnp.asarray(cotangent))))
    chex.assert_trees_all_close(*results, atol=2e-5)


def test_drop_path_keeps_the_mean_and_drops_at_its_rate():
    scales = np.asarray(layers.drop_path_scales(jax.random.key(0), 0.4, 3, 4000))
    assert scales.shape == (3, 2, 4000, 1, 1)
    for depth, rate in enumerate((0.0, 0.2, 0.4)):
        dropped = (scales[depth] == 0).mean()
        assert abs(dropped - rate) < 0.02, f"block {depth} drops {dropped:.3f}, not {rate}"
        kept = scales[depth][scales[depth] != 0]
        np.testing.assert_allclose(kept, 1 / (1 - rate), rtol=1e-6)
    assert (scales[2, 0] != scales[2, 1]).any(), "attention and MLP branches share their draws"


def test_initial_kernels_have_deits_spread():
    values = np.asarray(layers.truncated_normal(jax.random.key(0), (200, 500), jnp.float32))
    assert abs(values.std() - 0.02) < 2e-4 and abs(values.mean()) < 2e-4 and np.isfinite(values).all()


@pytest.mark.slow
def test_attention_equals_numpy_and_sows_its_weights():
    module, tokens = layers.Attention(heads=3), Tokens(TOKENS)
    variables = module.init(jax.random.key(0), tokens, train=False)
    assert set(variables) == {"params"}, "initialising keeps what is only sown"
    (branch, given), sown = module.apply(variables, tokens, train=False, mutable=["intermediates"], give=("weights",))
    expected = numpy_reference.attention(TOKENS, variables["params"], heads=3)
    np.testing.assert_allclose(branch, expected, atol=1e-5)
    (weights,) = sown["intermediates"]["attention"]
    assert weights.shape == (2, 3, 5, 5)
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(weights, given["weights"])


def test_attention_sees_a_merged_token_as_often_as_its_size_and_a_masked_one_never():
    module = layers.Attention(heads=3)
    params = module.init(jax.random.key(0), Tokens(TOKENS), train=False)
    few = Tokens(TOKENS, sizes=np.array([[2.0, 1, 1, 3, 1]] * 2), mask=np.array([[True, True, True, True, False]] * 2))
    many = Tokens(TOKENS[:, [0, 0, 1, 2, 3, 3, 3]])
    (some, _), (all_of_them, _) = (module.apply(params, tokens, train=False) for tokens in (few, many))
    np.testing.assert_allclose(some[:, :4], all_of_them[:, [0, 2, 3, 4]], atol=1e-5)


@pytest.mark.parametrize(("kernel", "stride", "ours"), [(3, 2, True), (3, 1, False), (1, 2, False)])
def test_convolutions_of_stride_two_multiply_no_inserted_zeros_on_cpus(kernel, stride, ours):
    module = conv_layers.convolution(5, kernel, stride, jnp.float32)
    inputs = jnp.ones((1, 8, 8, 4))
    params = module.init(jax.random.key(0), inputs)

    def gradient(inputs):
        return jax.grad(lambda inputs: jnp.square(module.apply(params, inputs)).sum())(inputs)

    dilated = "lhs_dilate=2x2" in jax.jit(gradient).lower(inputs).compile().as_text()
    assert dilated == (stride == 2 and not ours), (
        "zeros are inserted where they need not be, or this test does not find them"
    )
