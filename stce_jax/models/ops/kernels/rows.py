"""What the kernels share: tiles of a matrix, and rows that lie on several devices.

Shape letters: R rows, D columns.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.pallas import triton
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float

from stce_jax.models.ops.precision import widened

Index = tuple[Any, ...]
ANYWHERE = pl.BlockSpec(memory_space=pl.ANY)  # kernels compute their own addresses


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`, 1 or more: Triton's arrays have no other sizes."""
    return 1 << (number - 1).bit_length()


def tile(
    rows: int, columns: int, first: tuple[Any, Any], shape: tuple[int, int]
) -> tuple[Index, Bool[Array, "block width"]]:
    """(index, mask) of a tile of a matrix [rows, columns]: its first row and column, its shape, in powers of two.

    What lies outside of the matrix is masked.
    """
    down = first[0] + jnp.arange(shape[0])[:, None]
    across = first[1] + jnp.arange(shape[1])[None, :]
    return (down, across), (down < rows) & (across < columns)


def span(size: int, first: Any, length: int) -> tuple[Index, Bool[Array, "length"]]:
    """(index, mask) of a part of a vector of this size; as `tile`."""
    places = first + jnp.arange(length)
    return (places,), places < size


def load(reference: Any, index: Index, mask: Bool[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The numbers at an index, in float32 at least; 0 where the mask hides them."""
    numbers = triton.load(reference.at[index], mask=mask, other=0.0)
    return widened(numbers)


def store(reference: Any, index: Index, mask: Bool[Array, "*shape"], numbers: Float[Array, "*shape"]) -> None:
    """Writes numbers in the reference's dtype, except what the mask hides."""
    triton.store(reference.at[index], numbers.astype(reference.dtype), mask=mask)


def launch(
    kernel: Callable[..., None],
    operands: tuple[Array, ...],
    results: tuple[jax.ShapeDtypeStruct, ...],
    grid: tuple[int, ...],
    *,
    warps: int,
    interpret: bool,
) -> tuple[Array, ...]:
    """Runs a kernel on whole arrays, which it reads and writes by `load` and `store`."""
    return pl.pallas_call(
        kernel,
        out_shape=results,
        grid=grid,
        in_specs=[ANYWHERE] * len(operands),
        out_specs=tuple(ANYWHERE for _ in results),
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),
        interpret=interpret,
    )(*operands)


def over_devices(function: Callable[..., tuple[Array, ...]], rule: str) -> Callable[..., tuple[Array, ...]]:
    """Has each device compute the rows that it holds; a kernel that XLA cannot split would gather them all on each.

    Args:
      function: (*operands) -> (*results) of any number of rows.
      rule: the axes of operands and results, as "r d, d -> r d, d": "r" is the rows, the first operand's first axis; no
        other axis is split. A result without "r" is a sum over rows.
    """
    operand_axes, result_axes = ([own.split() for own in side.split(",")] for side in rule.split("->"))
    whole = tuple(sorted({axis for own in operand_axes + result_axes for axis in own} - {"r"}))

    def partition(mesh: Any, operands: Any, results: Any) -> tuple[Any, ...]:
        del results
        spec = operands[0].sharding.spec
        axis = spec[0] if len(spec) else None

        def placed(own: list[str]) -> NamedSharding:
            return NamedSharding(mesh, PartitionSpec(*(axis if name == "r" else None for name in own)))

        def of_device(*local: Array) -> tuple[Array, ...]:
            return tuple(
                jax.lax.psum(result, axis) if axis is not None and "r" not in own else result
                for result, own in zip(function(*local), result_axes, strict=True)
            )

        return mesh, of_device, tuple(map(placed, result_axes)), tuple(map(placed, operand_axes))

    apart = custom_partitioning(function)
    apart.def_partition(partition, sharding_rule=rule, need_replication_factors=whole)
    return apart
