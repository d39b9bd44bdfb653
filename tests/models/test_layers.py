"""LayerNorm, MLP, stochastic depth and position embeddings against plain NumPy and flax."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference
from flax import linen as nn

from stce_jax.models import layers

TOKENS = np.random.default_rng(0).normal(size=(2, 5, 12)).astype(np.float32)


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
