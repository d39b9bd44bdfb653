"""The depthwise convolution against its plain form, with its gradients."""

import jax
import jax.numpy as jnp
import pytest
from form_checks import check_form

from stce_jax.models.ops.depthwise import depthwise_convolution, depthwise_convolution_plain


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(jnp.float32, 1e-5), pytest.param(jnp.bfloat16, 4e-2, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("size", [(5, 7), pytest.param((1, 2), marks=pytest.mark.slow)])
@pytest.mark.parametrize("stride", [1, 2])
def test_equals_its_plain_form_with_its_gradients(stride, size, dtype, tolerance):
    forms = (
        lambda inputs, kernel, form=form: form(inputs, kernel, stride)
        for form in (depthwise_convolution, depthwise_convolution_plain)
    )
    check_form(*forms, (2, *size, 6), (3, 3, 1, 6), dtype, tolerance)


@pytest.mark.parametrize("stride", [1, 2])
def test_takes_no_channel_by_itself_on_cpus(stride):
    shapes = jnp.ones((1, 8, 8, 16)), jnp.ones((3, 3, 1, 16))
    program = jax.jit(depthwise_convolution, static_argnums=2).lower(*shapes, stride).compile().as_text()
    assert "convolution(" not in program


def test_other_strides_are_refused():
    with pytest.raises(ValueError, match="a stride of 1 or 2, not 3"):
        depthwise_convolution(jnp.ones((1, 9, 9, 4)), jnp.ones((3, 3, 1, 4)), 3)
