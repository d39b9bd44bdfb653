"""Modules whose backward pass computes their activations again, on every device: it saves memory and costs time."""

from collections.abc import Callable
from typing import Any

import jax
from flax.core import lift
from flax.linen.transforms import lift_transform

from stce_jax.models.ops.gradients import of_one_variance, own_gradient
from stce_jax.models.ops.ordering import after_on_cpus, recompute_all_from


def remat(kind: Any, again: bool = True, *, in_loop: bool = False) -> Any:
    """A class of modules with the calls of `kind`, of which training keeps the arguments alone.

    It stands where `flax.linen.remat` would, which saves next to nothing on CPUs: XLA drops JAX's barriers there, finds
    that both passes compute the same, and keeps it. Here what is computed again depends on the cotangents, and what the
    next module computes again on this one's gradients.

    Args:
      kind: a class of modules. Arguments of its calls that are no arrays, such as `train`, are static.
      again: whether to do so; otherwise `kind` is returned.
      in_loop: its calls are those of `nn.scan`, whose two loops XLA keeps apart anyway.

    Returns:
      A class with the fields and parameters of `kind`, with all derivatives.
    """
    return lift_transform(_lifted, kind, in_loop=in_loop) if again else kind


def _lifted(call: Callable[..., Any], in_loop: bool) -> Callable[..., Any]:
    """A scope's function with the gradient of `remat`."""

    def inner(scope_of: Any, repack: Any, variables: Any, keys: Any, *arguments: Any, **named: Any) -> Any:
        tree: Any  # mypy knows no methods of JAX's trees
        leaves, tree = jax.tree.flatten((arguments, named))
        arrays = {place: leaf for place, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)}

        def called(variables: Any, keys: Any, arrays: dict[int, jax.Array]) -> tuple[Any, Any]:
            scope = scope_of(variables, keys)
            arguments, named = tree.unflatten([arrays.get(place, leaf) for place, leaf in enumerate(leaves)])
            return call(scope, *arguments, **named), repack(scope)

        return _computed_again(called, in_loop, *of_one_variance((variables, keys, arrays)))

    return lift.pack(inner, (True,), (True,), (True,), name="remat", enable_kwargs=True)


def _computed_again(called: Callable[..., Any], in_loop: bool, *operands: Any) -> Any:
    """called(variables, keys, arrays) with the gradient of `remat`."""
    # Called once, for flax would draw other keys the next time; arrays from around it are operands, too.
    program, outputs = jax.make_jaxpr(called, return_shape=True)(*operands)
    output_tree: Any = jax.tree.structure(outputs)

    def run(constants: list[Any], variables: Any, keys: Any, arrays: Any) -> Any:
        keys = keys if in_loop else after_on_cpus(arrays, keys)  # or all modules would draw first
        leaves = jax.tree.leaves((variables, keys, arrays))
        return output_tree.unflatten(jax.core.eval_jaxpr(program.jaxpr, constants, *leaves))

    def backward(saved: Any, cotangents: Any) -> Any:
        *rest, arrays = saved
        if not in_loop:
            arrays, cotangents = recompute_all_from(arrays, cotangents)
        with jax.named_scope("rematted_computation"):  # as JAX calls it, for profiles
            _, pull_back = jax.vjp(run, *rest, arrays)
        *drest, darrays = pull_back(cotangents)
        return *drest, darrays if in_loop else after_on_cpus(drest, darrays)

    return own_gradient(lambda *operands: (run(*operands), operands), backward)(run)(program.consts, *operands)
