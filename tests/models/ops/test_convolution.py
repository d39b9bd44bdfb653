"""The convolution of stride 2 and the depth-wise one against their plain forms, with their gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stce_jax.models.ops import convolution


@pytest.mark.slow
@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 2)])
# On CPUs the second and the last compute over blocks of pixels.
@pytest.mark.parametrize(("channels", "features"), [(4, 5), (3, 16), (3, 17), (1, 2)])
def test_equals_its_plain_form_with_its_gradients(channels, features, size):
    check_form((2, *size, channels), features, jnp.float32, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "features"), [(4, 5), (3, 16)])
def test_equals_its_plain_form_in_bfloat16(channels, features):
    check_form((2, 5, 8, channels), features, jnp.bfloat16, 4e-2)  # a digit of bfloat16 is 0.8%; sums cancel


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(jnp.float32, 1e-5), pytest.param(jnp.bfloat16, 4e-2, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("size", [(5, 7), pytest.param((1, 2), marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["depthwise_convolution", "halving_depthwise_convolution"])
def test_depthwise_equals_its_plain_form_with_its_gradients(name, size, dtype, tolerance):
    check_form((2, *size, 6), 6, dtype, tolerance, name, channels=1)


@pytest.mark.parametrize("name", ["depthwise_convolution", "halving_depthwise_convolution"])
def test_depthwise_takes_no_channel_by_itself_on_cpus(name):
    shapes = jnp.ones((1, 8, 8, 16)), jnp.ones((3, 3, 1, 16))
    program = jax.jit(getattr(convolution, name)).lower(*shapes).compile().as_text()
    assert "convolution(" not in program


# What torch.nn.AvgPool2d(3, 2, 1, ceil_mode=True) gives for 0, 1, 2, ..., row by row.
@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((2, 3), [[8 / 9, 4 / 3], [7 / 6, 3 / 2]]),
        ((4, 5), [[4 / 3, 3, 8 / 3], [7, 12, 9], [31 / 6, 17 / 2, 37 / 6]]),
    ],
)
def test_halving_mean_is_pytorchs_average_pooling(size, expected):
    inputs = jnp.arange(float(np.prod(size))).reshape(1, *size, 1)
    np.testing.assert_allclose(convolution.halving_mean(inputs)[0, :, :, 0], expected, rtol=1e-6)
    assert convolution.halving_mean(inputs.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def check_form(shape, features, dtype, tolerance, name="halving_convolution", channels=None):
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=shape), dtype)
    kernel = jnp.asarray(rng.normal(size=(3, 3, channels or shape[-1], features)), dtype)
    expected, pull_back_plain = jax.vjp(getattr(convolution, f"{name}_plain"), inputs, kernel)
    outputs, pull_back = jax.vjp(jax.jit(getattr(convolution, name)), inputs, kernel)
    cotangent = jnp.asarray(rng.normal(size=expected.shape), dtype)
    ours, plain = (outputs, pull_back(cotangent)), (expected, pull_back_plain(cotangent))
    chex.assert_trees_all_equal_dtypes(ours, plain)
    ours, plain = jax.tree.map(lambda x: x.astype(jnp.float32), (ours, plain))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize(("features", "blocks"), [(16, True), (17, False)])
def test_few_features_of_an_image_are_computed_in_blocks_on_cpus(features, blocks):
    shapes = jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, features))
    program = jax.jit(convolution.halving_convolution).lower(*shapes).compile().as_text()
    assert ("stride=2x2" not in program) == blocks
