"""The convolution of stride 2 against its plain form, with its gradients; means of stride 2."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from form_checks import check_form

from stce_jax.models.conv_layers import convolution as convolution_of
from stce_jax.models.ops import convolution

FORMS = convolution.halving_convolution, convolution.halving_convolution_plain


@pytest.mark.slow
@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 2)])
# On CPUs the second and the fourth compute over blocks of pixels, and the last has its kernel's gradient of products.
@pytest.mark.parametrize(("channels", "features"), [(4, 5), (3, 16), (3, 17), (1, 2), (32, 65)])
def test_equals_its_plain_form_with_its_gradients(channels, features, size):
    check_form(*FORMS, [(2, *size, channels), (3, 3, channels, features)], jnp.float32, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "features"), [(4, 5), (3, 16), (32, 65)])
def test_equals_its_plain_form_in_bfloat16(channels, features):
    # A digit of bfloat16 is 0.8%, and sums cancel.
    check_form(*FORMS, [(2, 5, 8, channels), (3, 3, channels, features)], jnp.bfloat16, 4e-2)


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


@pytest.mark.parametrize(("features", "blocks"), [(16, True), (17, False)])
def test_few_features_of_an_image_are_computed_in_blocks_on_cpus(features, blocks):
    shapes = jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, features))
    program = jax.jit(convolution.halving_convolution).lower(*shapes).compile().as_text()
    assert ("stride=2x2" not in program) == blocks


@pytest.mark.parametrize(("channels", "features", "products"), [(32, 65, True), (31, 65, False), (32, 64, False)])
def test_the_gradient_of_a_wide_kernel_is_nine_products_on_cpus(channels, features, products):
    inputs, kernel = jnp.ones((1, 8, 8, channels)), jnp.ones((3, 3, channels, features))
    gradient = jax.grad(lambda kernel: convolution.halving_convolution(inputs, kernel).sum())
    traced = str(jax.make_jaxpr(gradient)(kernel))
    assert (traced.count("= dot_general[") == 9) == products, traced


@pytest.mark.parametrize("options", [{"kernel_dilation": 2}, {"feature_group_count": 3}, {"input_dilation": 2}])
def test_options_of_linen_are_kept(options):
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 6)), jnp.float32)
    ours = convolution_of(6, 3, 1, jnp.float32, **options)
    theirs = nn.Conv(6, (3, 3), padding=1, **options)
    variables = ours.init(jax.random.key(0), inputs)
    np.testing.assert_allclose(ours.apply(variables, inputs), theirs.apply(variables, inputs), atol=1e-5)
