"""What a model costs: parameters and multiply-adds, counted without computing anything."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, jaxprs_in_params

from stce_jax.models.bodies import Body
from stce_jax.training.sizes import Sizes
from stce_jax.training.state import abstract_variables


def count_model(model: Body, image_size: int) -> dict[str, int]:
    """{"parameters", "embedding_parameters", "multiply_adds"} of a body for square images of `image_size` pixels.

    Multiply-adds are those of one image forward, of matrix products and convolutions, as executed: in the last block of
    a model that reads the class token alone, those of the class token. See also `count_reduction`. Equal models are
    traced once.
    """
    try:
        key: Any = model, image_size
        return dict(_known_counts(*key))
    except TypeError:  # an option of somebody's module has no hash
        return _counts(model, image_size)


def _counts(model: Body, image_size: int) -> dict[str, int]:
    variables = abstract_variables(model, image_size)
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    return {
        "parameters": count_parameters(variables["params"]),
        "embedding_parameters": count_parameters(variables["params"].get("embedding", {})),
        "multiply_adds": count_multiply_adds(functools.partial(model.apply, train=False), variables, images),
    }


@functools.lru_cache(maxsize=64)
def _known_counts(model: Any, image_size: int) -> dict[str, int]:
    return _counts(model, image_size)


def work_of_sizes(model: Body, sizes: Sizes | None) -> Callable[[int], float] | None:
    """Steps of a run whose images grow -> multiply-adds of one image of each, forward; None: all steps cost alike."""
    if sizes is None:
        return None
    costs = tuple(float(count_model(model, side)["multiply_adds"]) for side in sizes.sides)
    return lambda steps: sizes.work(steps, costs)


def count_reduction(model: Body, image_size: int) -> dict[str, int]:
    """{"all_tokens", "reduction"}: multiply-adds of one image as papers on token reduction count them.

    "all_tokens" are those of embedding, blocks and head, all tokens of the last block counted, without the reduction's
    own, which are "reduction". Sorting, comparing and gathering multiply nothing.
    """
    variables = abstract_variables(model, image_size)
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)

    def traced(method: str) -> Jaxpr:
        return jax.make_jaxpr(functools.partial(model.apply, train=False, method=method))(variables, images).jaxpr

    tokens = traced("tokens")
    own = _count(tokens, "reduction")
    head = _count(traced("__call__"), "") - _count(traced("features"), "")
    return {"all_tokens": _count(tokens, "") - own + head, "reduction": own}


def count_parameters(params: Any) -> int:
    """How many numbers a tree of arrays or ShapeDtypeStructs holds."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def count_multiply_adds(function: Callable[..., Any], *args: Any, scope: str = "") -> int:
    """Multiply-adds of the matrix products and convolutions that a function executes; each turn of a scan counts.

    Where a function has a form for each platform, the default form counts: the others may multiply zeros.

    Args:
      function: any traceable function.
      *args: its arguments, arrays or ShapeDtypeStructs.
      scope: count those alone that lie in a `jax.named_scope` of this name, such as that of a linen module.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr, scope)


def _count(jaxpr: Jaxpr, scope: str) -> int:
    """Those within a scope; what an equation within it contains is within it, too."""
    total = 0
    for equation in jaxpr.eqns:
        if not equation.outvars:  # a branch of nothing, which transformations leave behind
            continue
        inner_scope = "" if scope and scope in str(equation.source_info.name_stack).split("/") else scope
        output: Any = equation.outvars[0].aval
        inputs: list[Any] = [variable.aval for variable in equation.invars]
        if equation.primitive.name == "dot_general" and not inner_scope:
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += math.prod(output.shape) * math.prod(inputs[0].shape[axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated" and not inner_scope:
            kernel = inputs[1].shape
            features = equation.params["dimension_numbers"].rhs_spec[0]
            total += math.prod(output.shape) * math.prod(kernel) // kernel[features]
        elif equation.primitive.name == "cond":
            total += _count(equation.params["branches"][-1].jaxpr, inner_scope)
        else:
            turns = equation.params["length"] if equation.primitive.name == "scan" else 1
            total += turns * sum(_count(inner, inner_scope) for inner in jaxprs_in_params(equation.params))
    return total
