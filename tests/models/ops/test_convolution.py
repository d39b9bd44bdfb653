"""GELU and BatchNorm as one operation against flax's two; the convolution of stride 2 against JAX's own."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from stce_jax.models.ops import convolution

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
        return convolution.GeluBatchNorm(self.dtype, name="norm")(inputs, train=train)


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


def test_the_statistics_are_constants_of_the_gradient():
    inputs = np.random.default_rng(4).normal(size=SHAPE).astype(np.float32)
    scale, bias = np.ones(SHAPE[-1], np.float32), np.zeros(SHAPE[-1], np.float32)

    def statistic(inputs):
        _, mean, variance = convolution.gelu_batch_norm(inputs, scale, bias, jnp.float32)
        return (mean + variance).sum()

    assert not np.any(jax.grad(statistic)(jnp.asarray(inputs)))


def test_the_backward_pass_keeps_the_inputs_alone():
    inputs = jnp.zeros((8, 32, 32, 16))
    forward = functools.partial(convolution._gelu_batch_norm_forward, dtype=jnp.float32)
    _, saved = jax.eval_shape(forward, inputs, jnp.ones(16), jnp.zeros(16))
    kept = [leaf for leaf in jax.tree.leaves(saved) if leaf.size > 16]
    assert len(kept) == 1, f"{len(kept)} arrays of the inputs' size are kept"


@pytest.mark.parametrize(("platform", "anew"), [("cpu", False), ("cuda", True), ("tpu", True)])
def test_the_backward_pass_computes_the_gelu_anew_but_on_cpus(platform, anew):
    def loss(inputs):
        return convolution.gelu_batch_norm(inputs, jnp.ones(16), jnp.zeros(16), jnp.float32)[0].sum()

    traced = jax.jit(jax.grad(loss)).trace(jnp.zeros((8, 32, 32, 16)))
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("optimization_barrier" in program) == anew


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 2)])
# On CPUs the second and the last go over blocks of pixels.
@pytest.mark.parametrize(("channels", "features"), [(4, 5), (3, 16), (3, 17), (1, 2)])
def test_the_convolution_of_stride_two_and_its_gradients_equal_jaxs(channels, features, size):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(2, *size, channels)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, channels, features)).astype(np.float32)

    def plain(inputs, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(inputs, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=layout)

    expected, pull_back = jax.vjp(plain, inputs, kernel)
    outputs, pull_back_ours = jax.vjp(jax.jit(convolution.halving_convolution), inputs, kernel)
    cotangent = rng.normal(size=expected.shape).astype(np.float32)
    chex.assert_trees_all_close(outputs, expected, rtol=1e-6, atol=1e-6)
    chex.assert_trees_all_close(pull_back_ours(cotangent), pull_back(cotangent), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("features", "blocks"), [(16, True), (17, False)])
def test_few_features_of_an_image_are_computed_in_blocks_on_cpus(features, blocks):
    shapes = jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, features))
    program = jax.jit(convolution.halving_convolution).lower(*shapes).compile().as_text()
    assert ("stride=2x2" not in program) == blocks


@pytest.mark.parametrize("mean", [0.0, 10.0, 100.0])
def test_the_gradient_of_gelu_and_batch_norm_is_as_exact_as_the_plain_forms(mean):
    """In float32, with means of up to a hundred deviations, which both take out of sums."""
    rng = np.random.default_rng(5)
    inputs, cotangent = rng.normal(size=(2, 4, 16, 16, 6))
    operands = inputs + mean, rng.uniform(0.5, 1.5, size=6), rng.normal(size=6)

    def ours(inputs, scale, bias):
        return convolution.gelu_batch_norm(inputs, scale, bias, inputs.dtype)[0]

    def plain(inputs, scale, bias):
        activated = nn.gelu(inputs, approximate=False)
        mean = activated.mean(axis=(0, 1, 2))
        variance = jnp.square(activated).mean(axis=(0, 1, 2)) - jnp.square(mean)
        return (activated - mean) * (jax.lax.rsqrt(variance + 1e-5) * scale) + bias

    def gradients(form, dtype):
        numbers = (jnp.asarray(array, dtype) for array in (*operands, cotangent))
        return jax.device_get(jax.jit(lambda *each: jax.vjp(form, *each[:-1])[1](each[-1]))(*numbers))

    with jax.enable_x64(True):
        exact = gradients(plain, jnp.float64)
    errors = {
        form: [np.abs(one - other).max() / np.abs(other).max() for one, other in zip(found, exact, strict=True)]
        for form, found in {form: gradients(form, jnp.float32) for form in (ours, plain)}.items()
    }
    for name, error, plain_error in zip(("inputs", "scale", "bias"), errors[ours], errors[plain], strict=True):
        assert error < 3 * plain_error + 1e-6, f"{name}: {error:.1e} off, the plain form {plain_error:.1e}"


@pytest.mark.parametrize(("kernel", "stride", "ours"), [(3, 2, True), (3, 1, False), (1, 2, False)])
def test_convolutions_of_stride_two_multiply_no_inserted_zeros_on_cpus(kernel, stride, ours):
    module = convolution.convolution(5, kernel, stride, jnp.float32)
    inputs = jnp.ones((1, 8, 8, 4))
    params = module.init(jax.random.key(0), inputs)

    def gradient(inputs):
        return jax.grad(lambda inputs: jnp.square(module.apply(params, inputs)).sum())(inputs)

    dilated = "lhs_dilate=2x2" in jax.jit(gradient).lower(inputs).compile().as_text()
    assert dilated == (stride == 2 and not ours), "zeros are inserted where they need not be, or the test looks amiss"
