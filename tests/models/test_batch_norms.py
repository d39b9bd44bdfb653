"""BatchNorm with the activation before or behind it, against flax's modules."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from stce_jax.models.batch_norms import BatchNorm, BatchNormSilu, GeluBatchNorm

FEATURES = (2, 6, 5, 8)  # [B, H, W, C]
MODULES = {  # name -> (module, activation before it, activation behind it)
    "BatchNorm": (BatchNorm, lambda x: x, lambda x: x),
    "BatchNormSilu": (BatchNormSilu, lambda x: x, nn.silu),
    "GeluBatchNorm": (GeluBatchNorm, lambda x: nn.gelu(x, approximate=False), lambda x: x),
}


class Flaxs(nn.Module):
    """The modules by themselves, as flax has them."""

    kind: str

    @nn.compact
    def __call__(self, inputs, train):
        _, before, behind = MODULES[self.kind]
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, name="norm")
        return behind(norm(before(inputs)))


class Ours(nn.Module):
    kind: str
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs, train):
        return MODULES[self.kind][0](self.dtype, name="norm")(inputs, train=train)


def variables(seed=0):
    rng = np.random.default_rng(seed)
    drawn = {
        name: rng.uniform(0.5, 1.5, size=FEATURES[-1]).astype(np.float32) for name in ("scale", "bias", "mean", "var")
    }
    return {
        "params": {"norm": {name: drawn[name] for name in ("scale", "bias")}},
        "batch_stats": {"norm": {name: drawn[name] for name in ("mean", "var")}},
    }


def passes(module, inputs, cotangent):
    """(outputs, new statistics, gradients by parameters and inputs) in training."""
    own = variables()

    def apply(params, inputs):
        return module.apply({**own, "params": params}, inputs, train=True, mutable=["batch_stats"])

    outputs, pull_back, statistics = jax.vjp(apply, own["params"], inputs, has_aux=True)
    return outputs, statistics, pull_back(cotangent.astype(outputs.dtype))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("kind", ["random", "far from zero", "one colour"])
def test_each_equals_flaxs(name, kind):
    rng = np.random.default_rng(1)
    inputs, cotangent = rng.normal(size=(2, *FEATURES)).astype(np.float32)
    inputs = {"random": inputs, "far from zero": inputs + 5, "one colour": np.full(FEATURES, 0.5, np.float32)}[kind]
    ours, flaxs = (passes(module(name), jnp.asarray(inputs), jnp.asarray(cotangent)) for module in (Ours, Flaxs))
    # Of one colour, the variance is 0, and whatever rounding leaves is divided by the square root of epsilon.
    chex.assert_trees_all_close(ours, flaxs, atol=2e-3 if kind == "one colour" else 2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", MODULES)
def test_evaluation_is_by_the_running_statistics(name):
    inputs = np.random.default_rng(2).normal(size=FEATURES).astype(np.float32)
    ours, flaxs = (module(name).apply(variables(), inputs, train=False) for module in (Ours, Flaxs))
    np.testing.assert_allclose(ours, flaxs, atol=1e-6)


@pytest.mark.parametrize("name", MODULES)
def test_initial_variables_are_flaxs(name):
    images = np.ones(FEATURES, np.float32)
    chex.assert_trees_all_equal(*(kind(name).init(jax.random.key(0), images, train=True) for kind in (Ours, Flaxs)))


@pytest.mark.parametrize("name", MODULES)
def test_bfloat16_computes_in_float32(name):
    rng = np.random.default_rng(3)
    inputs, cotangent = jnp.asarray(rng.normal(size=(2, *FEATURES)), jnp.bfloat16)
    outputs, statistics, (params, gradient) = passes(Ours(name, jnp.bfloat16), inputs, cotangent)
    exact = passes(Ours(name), inputs.astype(jnp.float32), cotangent.astype(jnp.float32))
    assert outputs.dtype == gradient.dtype == jnp.bfloat16
    chex.assert_trees_all_close((statistics, params), (exact[1], exact[2][0]), rtol=1e-5, atol=1e-5)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), (exact[0], exact[2][1]))
    widened = jax.tree.map(lambda x: x.astype(jnp.float32), (outputs, gradient))
    chex.assert_trees_all_close(widened, rounded, rtol=1e-2)
