"""The residual sum and the LayerNorm after it: one pass forward, one backward.

Shape letters: R rows, D model width.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from stce_jax.models.ops.kernels import rows
from stce_jax.models.ops.kernels.rows import load, power_of_two, span, store, tile

BLOCK = 4  # rows at a time
BLOCKS = 8  # of the backward pass, one after the other, whose sums a program adds up
WARPS = 4


def forward(
    inputs: Float[Array, "R D"],
    branch: Float[Array, "R D"],
    scale: Float[Array, "D"],
    bias: Float[Array, "D"],
    dtype: DTypeLike,
    epsilon: float,
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "R D"], Float[Array, "R D"], Float[Array, "R"], Float[Array, "R"]]:
    """(inputs + branch, its LayerNorm in `dtype`, each row's mean, and 1 / standard deviation); see `norms`."""

    def all_rows(inputs: Array, branch: Array, scale: Array, bias: Array) -> tuple[Array, ...]:
        count, width = inputs.shape
        wide = jnp.promote_types(inputs.dtype, jnp.float32)

        def kernel(inputs: Array, branch: Array, scale: Array, bias: Array, *results: Array) -> None:
            total, normed, means, inverses = results
            first = pl.program_id(0) * BLOCK
            index, mask = tile(count, width, (first, 0), (BLOCK, power_of_two(width)))
            columns, own = span(width, 0, power_of_two(width))
            # Rounded as the sum is stored, so that the norm is that of the stored sum.
            values = (load(inputs, index, mask) + load(branch, index, mask)).astype(total.dtype)
            store(total, index, mask, values)
            values = values.astype(wide)
            mean = values.sum(axis=1) / width
            centered = jnp.where(mask, values - mean[:, None], 0.0)
            inverse = jax.lax.rsqrt((centered * centered).sum(axis=1) / width + epsilon)
            outputs = centered * inverse[:, None] * load(scale, columns, own)[None] + load(bias, columns, own)[None]
            store(normed, index, mask, outputs)
            place, there = span(count, first, BLOCK)
            store(means, place, there, mean)
            store(inverses, place, there, inverse)

        results = (
            jax.ShapeDtypeStruct(inputs.shape, jnp.promote_types(inputs.dtype, branch.dtype)),
            jax.ShapeDtypeStruct(inputs.shape, jnp.dtype(dtype)),
            jax.ShapeDtypeStruct((count,), wide),
            jax.ShapeDtypeStruct((count,), wide),
        )
        operands = (inputs, branch, scale, bias)
        return rows.launch(kernel, operands, results, (pl.cdiv(count, BLOCK),), warps=WARPS, interpret=interpret)

    total, normed, mean, inverse = rows.over_devices(all_rows, "r d, r d, d, d -> r d, r d, r, r")(
        inputs, branch, scale, bias
    )
    return total, normed, mean, inverse


def backward(
    total: Float[Array, "R D"],
    scale: Float[Array, "D"],
    mean: Float[Array, "R"],
    inverse: Float[Array, "R"],
    dtotal: Float[Array, "R D"],
    dnormed: Float[Array, "R D"],
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "R D"], Float[Array, "D"], Float[Array, "D"]]:
    """(the cotangent of inputs and of branch, that of scale, that of bias); `dtotal` is that of the sum itself."""

    def all_rows(
        total: Array, dtotal: Array, dnormed: Array, mean: Array, inverse: Array, scale: Array
    ) -> tuple[Array, ...]:
        count, width = total.shape
        programs, wide = pl.cdiv(count, BLOCK * BLOCKS), jnp.promote_types(total.dtype, jnp.float32)
        padded = power_of_two(width)

        def kernel(*references: Array) -> None:
            total, dtotal, dnormed, mean, inverse, scale, dinputs, dscales, dbiases = references
            program = pl.program_id(0)  # not known within a loop
            columns, own = span(width, 0, padded)
            factors = load(scale, columns, own)[None]

            def of_block(number: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
                first = (program * BLOCKS + number) * BLOCK
                index, mask = tile(count, width, (first, 0), (BLOCK, padded))
                place, there = span(count, first, BLOCK)
                inverses = load(inverse, place, there)[:, None]
                centered = load(total, index, mask) - load(mean, place, there)[:, None]
                normalized = jnp.where(mask, centered * inverses, 0.0)
                cotangent = load(dnormed, index, mask)
                scaled = cotangent * factors
                along = (scaled * normalized).sum(axis=1, keepdims=True) / width
                change = inverses * (scaled - scaled.sum(axis=1, keepdims=True) / width - normalized * along)
                store(dinputs, index, mask, change + load(dtotal, index, mask))
                return sums[0] + (cotangent * normalized).sum(axis=0), sums[1] + cotangent.sum(axis=0)

            zeros = jnp.zeros((padded,), wide)
            dscale, dbias = jax.lax.fori_loop(0, BLOCKS, of_block, (zeros, zeros))
            index, mask = tile(programs, width, (program, 0), (1, padded))
            store(dscales, index, mask, dscale[None])
            store(dbiases, index, mask, dbias[None])

        sums = jax.ShapeDtypeStruct((programs, width), wide)
        results = (jax.ShapeDtypeStruct(total.shape, total.dtype), sums, sums)
        operands = (total, dtotal, dnormed, mean, inverse, scale)
        dinputs, dscales, dbiases = rows.launch(
            kernel, operands, results, (programs,), warps=WARPS, interpret=interpret
        )
        return dinputs, dscales.sum(axis=0), dbiases.sum(axis=0)

    dinputs, dscale, dbias = rows.over_devices(all_rows, "r d, r d, r d, r, r, d -> r d, d, d")(
        total, dtotal, dnormed, mean, inverse, scale
    )
    return dinputs, dscale, dbias
