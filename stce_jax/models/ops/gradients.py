"""Hand-written gradients that serve every derivative: `jax.custom_vjp` alone would refuse forward mode.

A backward pass is linear in the cotangents, and forward mode is its transpose. So `own_gradient` needs a forward and a
backward pass as `jax.custom_vjp` does, and gives jvp, jacfwd, linearize and Hessian-vector products besides. Reverse
mode makes the program that `jax.custom_vjp` would make.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive, unmapped_aval
from jax.interpreters import ad, batching, mlir

Operation = TypeVar("Operation", bound=Callable[..., Any])
Forward = Callable[..., tuple[Any, Any]]
Backward = Callable[..., tuple[Any, ...]]


def own_gradient(
    forward: Forward, backward: Backward, *, nondiff_argnums: tuple[int, ...] = (), refusal: str = ""
) -> Callable[[Operation], Operation]:
    """Gives an operation the gradient of two passes.

    Args:
      forward: (*operands) -> (outputs, saved), as the forward pass of `jax.custom_vjp`.
      backward: (*static operands, saved, cotangents) -> a cotangent for each other operand, or None for one that is no
        float.
      nondiff_argnums: places of static operands, which are no arrays; they come last.
      refusal: why there is reverse mode alone, and what to do: the TypeError of other derivatives. "": there are all.

    Returns:
      A decorator of operation(*operands) -> outputs; it is called with operands by position.
    """

    def decorate(operation: Operation) -> Operation:
        differentiable = jax.custom_jvp(operation, nondiff_argnums=nondiff_argnums)

        def rule(*arguments: Any) -> tuple[Any, Any]:
            *statics, primals, tangents = arguments
            outputs, saved = forward_pass(*primals, *statics)
            return outputs, _tangents(outputs, saved, tangents, functools.partial(backward, *statics), refusal)

        differentiable.defjvp(rule, symbolic_zeros=True)
        forward_pass = _never_differentiated(forward, nondiff_argnums, refusal) if refusal else forward

        @functools.wraps(operation)
        def wrapper(*operands: Any) -> Any:
            arrays = len(operands) - len(nondiff_argnums)
            return differentiable(*of_one_variance(operands[:arrays]), *operands[arrays:])

        return cast(Operation, wrapper)

    return decorate


def _never_differentiated(forward: Forward, nondiff_argnums: tuple[int, ...], refusal: str) -> Forward:
    guarded = jax.custom_jvp(forward, nondiff_argnums=nondiff_argnums)

    def rule(*_: Any) -> Any:
        raise TypeError(refusal)

    guarded.defjvp(rule)
    return guarded


class _Passes(NamedTuple):
    """What the primitive knows of its operation.

    Attributes:
      backward: (saved, cotangents), both flat -> the cotangents of the operands that have a tangent.
      outputs: types of the outputs' tangents.
      num_saved: how many arrays are saved.
      refusal: see `own_gradient`.
    """

    backward: Callable[[Sequence[Any], Sequence[Any]], list[Any]]
    outputs: tuple[Any, ...]
    num_saved: int
    refusal: str


def _tangents(outputs: Any, saved: Any, tangents: Any, backward: Backward, refusal: str) -> Any:
    """The outputs' tangents: a linear function of the operands', whose transpose is the backward pass."""
    saved_tree: Any  # mypy knows no methods of JAX's trees
    output_tree: Any
    operand_tree: Any
    saved_leaves, saved_tree = jax.tree.flatten(saved)
    output_leaves, output_tree = jax.tree.flatten(outputs)
    leaves, operand_tree = jax.tree.flatten(tangents, is_leaf=lambda leaf: leaf is None)
    moving = {
        place: leaf for place, leaf in enumerate(leaves) if leaf is not None and not isinstance(leaf, SymbolicZero)
    }
    dtypes = {place: leaf.dtype for place, leaf in moving.items()}

    def flat_backward(saved: Sequence[Any], cotangents: Sequence[Any]) -> list[Any]:
        given = operand_tree.flatten_up_to(backward(saved_tree.unflatten(saved), output_tree.unflatten(cotangents)))
        return [given[place].astype(dtype) for place, dtype in dtypes.items()]

    types = tuple(jax.typeof(leaf).to_tangent_aval() for leaf in output_leaves)
    passes = _Passes(flat_backward, types, len(saved_leaves), refusal)
    return output_tree.unflatten(_linear.bind(*saved_leaves, *moving.values(), passes=passes))


def _forward_mode(*arrays: Any, passes: _Passes) -> list[Any]:
    """The transpose of the backward pass."""
    if passes.refusal:
        raise TypeError(passes.refusal)
    saved, tangents = arrays[: passes.num_saved], arrays[passes.num_saved :]
    zeros = [_varying(jnp.zeros(own.shape, own.dtype), varying_axes(own)) for own in passes.outputs]
    # Not `jax.linear_transpose`, which takes all that leaves a barrier to be linear.
    _, pull_back = jax.vjp(lambda *cotangents: passes.backward(saved, cotangents), *zeros)
    return list(pull_back(list(tangents)))


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, passes: _Passes) -> tuple[list[Any], list[Any]]:
    if all(isinstance(tangent, ad.Zero) for tangent in tangents[: passes.num_saved]):
        moved = [ad.instantiate_zeros(tangent) for tangent in tangents[passes.num_saved :]]
        outputs = _linear.bind(*primals, passes=passes)
        return outputs, _linear.bind(*primals[: passes.num_saved], *moved, passes=passes)
    return jax.jvp(
        functools.partial(_forward_mode, passes=passes), tuple(primals), tuple(map(ad.instantiate_zeros, tangents))
    )


def _transpose(cotangents: Sequence[Any], *arrays: Any, passes: _Passes) -> list[Any]:
    saved = arrays[: passes.num_saved]
    given = passes.backward(saved, [ad.instantiate_zeros(cotangent) for cotangent in cotangents])
    return [None] * passes.num_saved + given


def _batched(arrays: Sequence[Any], axes: Sequence[Any], *, passes: _Passes) -> tuple[list[Any], list[int]]:
    size = next(array.shape[axis] for array, axis in zip(arrays, axes, strict=True) if axis is not None)
    saved_axes = axes[: passes.num_saved]
    # Every tangent gets the axis, for every cotangent has it.
    moved = [
        batching.bdim_at_front(array, axis, size)
        for array, axis in zip(arrays[passes.num_saved :], axes[passes.num_saved :], strict=True)
    ]
    backward = jax.vmap(passes.backward, in_axes=(list(saved_axes), 0), axis_size=size)

    def flat_backward(saved: Sequence[Any], cotangents: Sequence[Any]) -> list[Any]:
        return backward(list(saved), list(cotangents))

    types = tuple(unmapped_aval(size, 0, own) for own in passes.outputs)
    mapped = passes._replace(backward=flat_backward, outputs=types)
    outputs = _linear.bind(*arrays[: passes.num_saved], *moved, passes=mapped)
    return outputs, [0] * len(outputs)


_linear = Primitive("own_gradient")
_linear.multiple_results = True
_linear.def_impl(_forward_mode)
_linear.def_abstract_eval(lambda *_, passes: list(passes.outputs))
ad.primitive_jvps[_linear] = _jvp
ad.primitive_transposes[_linear] = _transpose
batching.primitive_batchers[_linear] = _batched
mlir.register_lowering(_linear, mlir.lower_fun(_forward_mode, multiple_results=True))


def of_one_variance(operands: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inside `jax.shard_map`: operands that are alike on all devices are marked as varying where another one varies.

    JAX does so for its own operations, and sums their cotangents over the devices.
    """
    axes = frozenset().union(*(varying_axes(jax.typeof(array)) for array in jax.tree.leaves(operands)))
    return jax.tree.map(lambda array: _varying(array, axes), operands) if axes else operands


def varying_axes(own: Any) -> frozenset[Any]:
    """Axes of devices over which an array of this type differs, inside `jax.shard_map`."""
    return getattr(getattr(own, "mat", None), "varying", frozenset())  # JAX may rename it: it has done so before


def _varying(array: Any, axes: frozenset[Any]) -> Any:
    missing = tuple(axes - varying_axes(jax.typeof(array)))
    return jax.lax.pcast(array, missing, to="varying") if missing else array
