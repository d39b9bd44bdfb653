"""GELU with a linear layer's bias before it: one pass forward, one backward.

Shape letters: R rows, D columns.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from stce_jax.models.ops.kernels import rows
from stce_jax.models.ops.kernels.rows import load, span, store, tile

TILE = (16, 128)  # rows and columns at a time
BLOCKS = 8  # tiles, one below the other, whose sums a program adds up
WARPS = 4
# Abramowitz and Stegun 1964, 7.1.26: erf(x) = 1 - (a1 t + ... + a5 t^5) exp(-x^2), t = 1 / (1 + p x), x >= 0.
ERF_P = 0.3275911
ERF_A = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def normal_distribution(inputs: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """(Phi, phi), distribution and density of the standard normal; Phi within 1e-7. Pallas has no erf for Triton."""
    fading = jnp.exp(-0.5 * inputs * inputs)
    share = 1.0 / (1.0 + ERF_P * np.sqrt(0.5).item() * jnp.abs(inputs))
    polynomial = jnp.zeros_like(inputs)
    for factor in reversed(ERF_A):
        polynomial = (polynomial + factor) * share
    above = 0.5 * polynomial * fading  # the share of the normal beyond |x|
    return jnp.where(inputs < 0, above, 1.0 - above), np.sqrt(0.5 / np.pi).item() * fading


def bias_gelu(inputs: Float[Array, "R D"], bias: Float[Array, "D"], *, interpret: bool = False) -> Float[Array, "R D"]:
    """GELU(inputs + bias), in the inputs' dtype."""

    def all_rows(inputs: Array, bias: Array) -> tuple[Array, ...]:
        count, width = inputs.shape

        def kernel(inputs: Array, bias: Array, outputs: Array) -> None:
            first = pl.program_id(0) * TILE[0], pl.program_id(1) * TILE[1]
            index, mask = tile(count, width, first, TILE)
            values = _biased(inputs, bias, index, mask, first[1], width)
            store(outputs, index, mask, _gelu(values))

        grid = pl.cdiv(count, TILE[0]), pl.cdiv(width, TILE[1])
        results = (jax.ShapeDtypeStruct(inputs.shape, inputs.dtype),)
        return rows.launch(kernel, (inputs, bias), results, grid, warps=WARPS, interpret=interpret)

    (outputs,) = rows.over_devices(all_rows, "r d, d -> r d")(inputs, bias)
    return outputs


def bias_gelu_backward(
    inputs: Float[Array, "R D"], bias: Float[Array, "D"], cotangent: Float[Array, "R D"], *, interpret: bool = False
) -> tuple[Float[Array, "R D"], Float[Array, "D"]]:
    """(dinputs, dbias) of `bias_gelu`; dbias in float32 at least."""

    def all_rows(inputs: Array, cotangent: Array, bias: Array) -> tuple[Array, ...]:
        count, width = inputs.shape

        def kernel(inputs: Array, cotangent: Array, bias: Array, dinputs: Array, sums: Array) -> None:
            def of_tile(first: tuple[Array, Array]) -> tuple[Array]:
                index, mask = tile(count, width, first, TILE)
                values = _biased(inputs, bias, index, mask, first[1], width)
                distribution, density = normal_distribution(values)
                change = load(cotangent, index, mask) * (distribution + values * density)
                store(dinputs, index, mask, change)
                return (change,)

            _add_up(of_tile, (sums,), count, width)

        results = (jax.ShapeDtypeStruct(inputs.shape, inputs.dtype), _sums(inputs))
        operands, grid = (inputs, cotangent, bias), _grid(count, width)
        dinputs, sums = rows.launch(kernel, operands, results, grid, warps=WARPS, interpret=interpret)
        return dinputs, sums.sum(axis=0)

    dinputs, dbias = rows.over_devices(all_rows, "r d, r d, d -> r d, d")(inputs, cotangent, bias)
    return dinputs, dbias


def _gelu(values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return values * normal_distribution(values)[0]


def _biased(
    inputs: Array, bias: Array, index: rows.Index, mask: Array, first: Array, width: int
) -> Float[Array, "rows columns"]:
    return load(inputs, index, mask) + load(bias, *span(width, first, TILE[1]))[None]


def _grid(count: int, width: int) -> tuple[int, int]:
    return pl.cdiv(count, TILE[0] * BLOCKS), pl.cdiv(width, TILE[1])


def _sums(inputs: Array) -> jax.ShapeDtypeStruct:
    """What the programs add up, a row each."""
    programs, _ = _grid(*inputs.shape)
    return jax.ShapeDtypeStruct((programs, inputs.shape[1]), jnp.promote_types(inputs.dtype, jnp.float32))


def _add_up(of_tile: Callable[..., tuple[Array, ...]], sums: tuple[Array, ...], count: int, width: int) -> None:
    """Within a kernel: what `of_tile` gives of a program's tiles, summed over rows, becomes its row of the sums."""
    program, across = pl.program_id(0), pl.program_id(1) * TILE[1]  # not known within a loop

    def add(number: Array, totals: tuple[Array, ...]) -> tuple[Array, ...]:
        down = (program * BLOCKS + number) * TILE[0]
        given = of_tile((down, across))
        return tuple(total + own.sum(axis=0) for total, own in zip(totals, given, strict=True))

    zeros = tuple(jnp.zeros((TILE[1],), own.dtype) for own in sums)
    totals = jax.lax.fori_loop(0, BLOCKS, add, zeros)
    index, mask = tile(pl.cdiv(count, TILE[0] * BLOCKS), width, (program, across), (1, TILE[1]))
    for own, total in zip(sums, totals, strict=True):
        store(own, index, mask, total[None])
