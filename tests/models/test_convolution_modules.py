"""GELU with BatchNorm as one module against flax's two; convolutions against flax's."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from stce_jax.models.layers import GeluBatchNorm, convolution

SHAPE = (3, 5, 4, 6)


class Plain(nn.Module):
    """The two modules by themselves, as flax has them."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs, *, train):
        activated = nn.gelu(inputs.astype(jnp.float32), approximate=False)
        options = {"momentum": 0.9, "epsilon": 1e-5, "dtype": self.dtype, "name": "norm"}
        return nn.BatchNorm(use_running_average=not train, **options)(activated)


class Ours(nn.Module):
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs, *, train):
        return GeluBatchNorm(self.dtype, name="norm")(inputs, train=train)


def variables(seed=0):
    rng = np.random.default_rng(seed)
    drawn = {
        name: rng.uniform(0.5, 1.5, size=SHAPE[-1]).astype(np.float32) for name in ("scale", "bias", "mean", "var")
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


@pytest.mark.parametrize("kind", ["random", "far from zero", "one colour"])
def test_gelu_and_batch_norm_equal_flaxs_two(kind):
    rng = np.random.default_rng(1)
    inputs, cotangent = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    inputs = {"random": inputs, "far from zero": inputs + 5, "one colour": np.full(SHAPE, 0.5, np.float32)}[kind]
    ours, plain = (passes(module, jnp.asarray(inputs), jnp.asarray(cotangent)) for module in (Ours(), Plain()))
    # Of one colour, the variance is 0, and whatever rounding leaves is divided by the square root of epsilon.
    chex.assert_trees_all_close(ours, plain, atol=2e-3 if kind == "one colour" else 2e-5, rtol=1e-4)


def test_evaluation_uses_the_running_statistics():
    inputs = np.random.default_rng(2).normal(size=SHAPE).astype(np.float32)
    ours, plain = (module.apply(variables(), inputs, train=False) for module in (Ours(), Plain()))
    np.testing.assert_allclose(ours, plain, atol=1e-6)


def test_initial_variables_are_flaxs():
    images = np.ones(SHAPE, np.float32)
    ours, plain = (module.init(jax.random.key(0), images, train=True) for module in (Ours(), Plain()))
    chex.assert_trees_all_equal(ours, plain)


def test_bfloat16_is_computed_in_float32():
    rng = np.random.default_rng(3)
    inputs, cotangent = jnp.asarray(rng.normal(size=(2, *SHAPE)), jnp.bfloat16)
    outputs, statistics, (params, gradient) = passes(Ours(jnp.bfloat16), inputs, cotangent)
    exact = passes(Ours(), inputs.astype(jnp.float32), cotangent.astype(jnp.float32))
    assert outputs.dtype == gradient.dtype == jnp.bfloat16
    chex.assert_trees_all_close((statistics, params), (exact[1], exact[2][0]), rtol=1e-5, atol=1e-5)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), (exact[0], exact[2][1]))
    widened = jax.tree.map(lambda x: x.astype(jnp.float32), (outputs, gradient))
    chex.assert_trees_all_close(widened, rounded, rtol=1e-2)


@pytest.mark.parametrize(("kernel", "stride", "ours"), [(3, 2, True), (3, 1, False), (1, 2, False)])
def test_convolutions_of_stride_two_multiply_no_inserted_zeros_on_cpus(kernel, stride, ours):
    module = convolution(5, kernel, stride, jnp.float32)
    inputs = jnp.ones((1, 8, 8, 4))
    params = module.init(jax.random.key(0), inputs)

    def gradient(inputs):
        return jax.grad(lambda inputs: jnp.square(module.apply(params, inputs)).sum())(inputs)

    dilated = "lhs_dilate=2x2" in jax.jit(gradient).lower(inputs).compile().as_text()
    assert dilated == (stride == 2 and not ours), "zeros are inserted where they need not be, or the test looks amiss"
