"""Operations on a CPU by oneDNN, where it computes, see `platform/cpu_library.py`: with every derivative."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from stce_jax.models.ops.gradients import varying_axes
from stce_jax.models.ops.parts import computed_here
from stce_jax.platform.cpu_library import onednn_computes


def serves(*arrays: Float[Array, "..."]) -> bool:
    """Whether oneDNN computes with these: float32, in a program for here, and none of `jax.shard_map`."""
    return (
        computed_here(arrays[0].shape)
        and onednn_computes()
        and all(array.dtype == jnp.float32 for array in arrays)
        # `jax.export` has axes without a number.
        and all(isinstance(side, int) and side > 0 for array in arrays for side in array.shape)
        and not any(varying_axes(jax.typeof(array)) for array in arrays)
    )


def bilinear(
    name: str,
    plain: Callable[..., Any],
    by_onednn: Callable[..., Any],
    to_left: Callable[..., Any],
    to_right: Callable[..., Any],
) -> Primitive:
    """A JAX operation, linear in each of two operands, with every derivative; to be bound where oneDNN serves.

    Args:
      name: of the operation.
      plain: `(left, right, **options) -> result`, by JAX's own operations: for what is exported, which may go to a CPU
        without oneDNN, for batches of batches, and where nothing is compiled.
      by_onednn: `(output, left, right, **options) -> result`, the same by `call_onednn`, whose `output` this is.
      to_left: `(cotangent, left, right, **options)` -> the left operand's cotangent; of `left` only `.aval` is there.
      to_right: the same of the right operand.
    """

    def type_of_result(*types: Any, **options: Any) -> Any:
        shapes = (jax.ShapeDtypeStruct(own.shape, own.dtype) for own in types)
        output = jax.eval_shape(functools.partial(plain, **options), *shapes)
        return jax.core.ShapedArray(output.shape, output.dtype)

    def lowered(context: Any, *operands: Any, **options: Any) -> Any:
        # A function traced where oneDNN computed may be compiled elsewhere, as a part of another program.
        elsewhere = context.module_context.lowering_parameters.for_export or not onednn_computes()
        form = plain if elsewhere else functools.partial(by_onednn, context.avals_out[0])
        return mlir.lower_fun(functools.partial(form, **options), multiple_results=False)(context, *operands)

    def batched(operands: Sequence[Array], axes: Sequence[Any], **options: Any) -> tuple[Array, int]:
        return jax.vmap(functools.partial(plain, **options), in_axes=tuple(axes))(*operands), 0

    operation = Primitive(f"onednn_{name}")
    operation.def_impl(plain)
    operation.def_abstract_eval(type_of_result)
    ad.defbilinear(operation, to_left, to_right)
    batching.primitive_batchers[operation] = batched
    mlir.register_lowering(operation, mlir.lower_fun(plain, multiple_results=False))
    mlir.register_lowering(operation, lowered, platform="cpu")
    return operation
