"""Kernels for GPUs: their numbers by Pallas's interpreter, their programs for CUDA, and rows on several devices."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stce_jax.models.ops import norms
from stce_jax.models.ops.activations import gelu_plain
from stce_jax.models.ops.kernels import gelu, residual_norm

EPSILON = 1e-6
SHAPES = [(37, 24), (5, 200), (130, 384)]  # rows that fill no block, columns that are no power of two
TOLERANCES = {"float32": 2e-5, "bfloat16": 2e-2}
DTYPES = ("float32", "bfloat16")


def arrays(shape, dtype, count):
    keys = jax.random.split(jax.random.key(shape[0]), count)
    return [jax.random.normal(key, shape).astype(dtype) for key in keys]


def vectors(width, count):
    return [1.0 + 0.3 * jax.random.normal(key, (width,)) for key in jax.random.split(jax.random.key(7), count)]


def plain_residual_norm(inputs, branch, scale, bias, dtype):
    total = inputs + branch
    return total, norms.layer_norm_plain(total, scale, bias, dtype, EPSILON)


def assert_close(actual, expected, dtype):
    """Relative to the largest number of each array, as sums over rows are."""
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        chex.assert_equal_shape((ours, theirs))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCES[str(dtype)] * np.abs(theirs).max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_residual_norm_equals_sum_and_norm(shape, dtype):
    inputs, branch, dtotal, dnormed = arrays(shape, dtype, 4)
    scale, bias = vectors(shape[1], 2)
    expected, pull_back = jax.vjp(
        functools.partial(plain_residual_norm, dtype=dtype),
        *(each.astype(dtype) for each in (inputs, branch)),
        scale,
        bias,
    )
    total, normed, mean, inverse = residual_norm.forward(inputs, branch, scale, bias, dtype, EPSILON, interpret=True)
    assert_close((total, normed), expected, dtype)
    assert total.dtype == normed.dtype == jnp.dtype(dtype)
    dinputs, _, dscale, dbias = pull_back((dtotal, dnormed))
    ours = residual_norm.backward(total, scale, mean, inverse, dtotal, dnormed, interpret=True)
    assert_close(ours, (dinputs, dscale, dbias), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_bias_gelu_equals_its_two_operations(shape, dtype):
    inputs, cotangent = arrays(shape, dtype, 2)
    (bias,) = vectors(shape[1], 1)

    def plain(inputs, bias):  # rounded once, at the end
        return gelu_plain(inputs.astype(jnp.float32) + bias).astype(dtype)

    expected, pull_back = jax.vjp(plain, inputs, bias)
    assert_close(gelu.bias_gelu(inputs, bias, interpret=True), expected, dtype)
    assert_close(gelu.bias_gelu_backward(inputs, bias, cotangent, interpret=True), pull_back(cotangent), dtype)


def calls(interpret, rows=64, width=24):
    """{kernel: (function of arrays, its arrays)}; the arrays of rows come first."""
    own = functools.partial(jax.random.normal, jax.random.key(1))
    rows_of_numbers, of_rows, of_columns = own((rows, width)), own((rows,)), own((width,))
    partial = functools.partial
    return {
        "residual_norm": (
            partial(residual_norm.forward, dtype=jnp.float32, epsilon=EPSILON, interpret=interpret),
            (rows_of_numbers, rows_of_numbers + 1.0, of_columns, of_columns + 1.0),
        ),
        "residual_norm_backward": (
            lambda total, dtotal, dnormed, mean, inverse, scale: residual_norm.backward(
                total, scale, mean, inverse, dtotal, dnormed, interpret=interpret
            ),
            (rows_of_numbers, rows_of_numbers + 1.0, rows_of_numbers + 2.0, of_rows, of_rows + 1.0, of_columns),
        ),
        "bias_gelu": (partial(gelu.bias_gelu, interpret=interpret), (rows_of_numbers, of_columns)),
        "bias_gelu_backward": (
            lambda inputs, cotangent, bias: gelu.bias_gelu_backward(inputs, bias, cotangent, interpret=interpret),
            (rows_of_numbers, rows_of_numbers + 1.0, of_columns),
        ),
    }


NAMES = tuple(calls(True))


@pytest.mark.parametrize("name", NAMES)
def test_devices_compute_their_own_rows(name):
    function, operands = calls(interpret=True)[name]
    mesh = Mesh(np.array(jax.devices()), ("data",))
    rows = len(operands[0])
    placed = [
        jax.device_put(own, NamedSharding(mesh, PartitionSpec("data" if len(own) == rows else None)))
        for own in operands
    ]
    compiled = jax.jit(function).lower(*placed).compile()
    assert_close(compiled(*placed), function(*operands), "float32")
    gathered = [shape for shape in re.findall(r"(\S+) all-gather\(", compiled.as_text()) if f"[{rows}" in shape]
    assert not gathered, f"{name}: devices gather rows that others hold: {gathered}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_kernels_become_triton_programs(name, dtype):
    function, operands = calls(interpret=False)[name]
    operands = [own.astype(dtype) if own.ndim == 2 else own for own in operands]
    program = jax.jit(function).trace(*operands).lower(lowering_platforms=("cuda",)).as_text()
    assert program.count("xla.gpu.triton") == 1, f"{name}: no Triton kernel, or more than one"
