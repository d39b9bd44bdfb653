"""Depthwise convolutions against their plain forms, with their gradients."""

import jax
import jax.numpy as jnp
import pytest
from form_checks import check_form

from stce_jax.models.ops.activations import gelu
from stce_jax.models.ops.depthwise import (
    depthwise_convolution,
    depthwise_convolution_plain,
    depthwise_residual,
    depthwise_residual_plain,
)

in_dtypes = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(jnp.float32, 1e-5), pytest.param(jnp.bfloat16, 4e-2, marks=pytest.mark.slow)]
)
of_sizes = pytest.mark.parametrize("size", [(5, 7), pytest.param((1, 2), marks=pytest.mark.slow)])


@in_dtypes
@of_sizes
@pytest.mark.parametrize("stride", [1, 2])
def test_equals_its_plain_form_with_its_gradients(stride, size, dtype, tolerance):
    forms = (
        lambda inputs, kernel, form=form: form(inputs, kernel, stride)
        for form in (depthwise_convolution, depthwise_convolution_plain)
    )
    check_form(*forms, [(2, *size, 6), (3, 3, 1, 6)], dtype, tolerance)


@in_dtypes
@of_sizes
def test_the_residual_equals_its_plain_form_with_its_gradients(size, dtype, tolerance):
    shapes = [(2, *size, 6), (3, 3, 1, 6), (6,)]
    check_form(depthwise_residual, depthwise_residual_plain, shapes, dtype, tolerance)


def test_what_the_residual_reads_is_computed_where_it_is_padded():
    operands = jnp.ones((8, 28, 28, 64)), jnp.ones((3, 3, 1, 64)), jnp.ones(64)

    def passes(residual):
        program = jax.jit(lambda inputs, *others: residual(gelu(inputs), *others)).lower(*operands).compile().as_text()
        return program[program.index("ENTRY") :].count(" fusion(")

    def in_three(inputs, kernel, bias):
        return inputs + (depthwise_convolution(inputs, kernel, 1) + bias)

    assert (passes(depthwise_residual), passes(in_three)) == (2, 3)  # GELU with the padding, then the nine shifts


@pytest.mark.parametrize("stride", [1, 2])
def test_takes_no_channel_by_itself_on_cpus(stride):
    shapes = jnp.ones((1, 8, 8, 16)), jnp.ones((3, 3, 1, 16))
    program = jax.jit(depthwise_convolution, static_argnums=2).lower(*shapes, stride).compile().as_text()
    assert "convolution(" not in program


def test_other_strides_are_refused():
    with pytest.raises(ValueError, match="a stride of 1 or 2, not 3"):
        depthwise_convolution(jnp.ones((1, 9, 9, 4)), jnp.ones((3, 3, 1, 4)), 3)
