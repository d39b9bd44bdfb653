"""What lets a function meet arrays of different ranks where a user has JAX refuse that."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax

Function = TypeVar("Function", bound=Callable[..., Any])


def of_any_rank(function: Function) -> Function:
    """Decorates a function in which JAX adds axes, as in `rows [H, 1] + columns [W]`.

    The setting `jax_numpy_rank_promotion` is for a user's own functions; adding those axes by hand would be another
    program.
    """

    @functools.wraps(function)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        with jax.numpy_rank_promotion("allow"):
            return function(*arguments, **options)

    return cast(Function, wrapper)
