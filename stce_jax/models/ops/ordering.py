"""The order in which XLA computes, where memory hangs on it: what a backward pass recomputes, and when."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from stce_jax.models.ops.parts import computed_here
from stce_jax.platform.backends import by_backend


def recompute_from(
    saved: Shaped[Array, "*shape"], cotangent: Shaped[Array, "*other"]
) -> tuple[Shaped[Array, "*shape"], Shaped[Array, "*other"]]:
    """(saved, cotangent) of a backward pass, such that what is computed from `saved` is computed then, and not before.

    XLA would otherwise find that the forward pass has computed the same and keep that, or compute it long before the
    cotangent is there; either takes memory. On CPUs, for which XLA drops barriers, it holds with a single device alone.
    """
    return by_backend(
        saved,
        cotangent,
        cpu=lambda saved, cotangent: (after_here(cotangent, saved), cotangent),
        default=lambda saved, cotangent: jax.lax.optimization_barrier((saved, cotangent)),
    )


def after_here(first: Any, later: Any) -> Any:
    """`after_on_cpus` where this process computes on a single CPU device, else `later`.

    With several a number of each array of `first` would have to reach all of them.
    """
    here = all(array.ndim and computed_here(array.shape) for array in jax.tree.leaves(first))
    return after_on_cpus(first, later) if here else later


def recompute_all_from(saved: Any, cotangents: Any) -> tuple[Any, Any]:
    """`recompute_from` for arrays of two trees, at a cost that whole blocks are worth: it holds on several CPUs, too.

    There a zero that is made of the cotangents is added to `saved`, see `after_on_cpus`.
    """
    return by_backend(
        saved,
        cotangents,
        cpu=lambda saved, cotangents: (_plus_zero_of(cotangents, saved), cotangents),
        default=lambda saved, cotangents: jax.lax.optimization_barrier((saved, cotangents)),
    )


def after_on_cpus(first: Any, later: Any) -> Any:
    """`later`, a tree of arrays and keys that XLA for CPUs uses only when all floats of the tree `first` are computed.

    Values stay, whatever `first` has. On other backends it does nothing.
    """
    return by_backend(first, later, cpu=_plus_zero_of, default=lambda first, later: later)


def _plus_zero_of(first: Any, later: Any) -> Any:
    """`later` plus a zero that XLA cannot know to be one.

    It is made of one number of each array of `first`. Their bits are sorted as integers, which XLA for CPUs does in a
    function of its own: it compiles nothing for it, and fuses it with nothing. Otherwise it might compute the zero, and
    what led to it, again for each number that it is added to.
    """
    floats = [array for array in jax.tree.leaves(first) if array.size and _is(array, jnp.floating)]
    corners = [array[(0,) * array.ndim].astype(jnp.float32) for array in floats]
    if not corners:
        return later
    bits = jax.lax.bitcast_convert_type(jnp.stack([jnp.float32(0), *corners]), jnp.int32)
    ordered = jax.lax.sort(bits)
    zero = jnp.where(ordered[0] > ordered[-1], jnp.float32(1), jnp.float32(0))

    def add(array: Array) -> Array:
        if _is(array, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(add(jax.random.key_data(array)), impl=jax.random.key_impl(array))
        return array + zero.astype(array.dtype) if _is(array, jnp.number) else array

    return jax.tree.map(add, later)


def _is(array: Array, kind: Any) -> bool:
    return bool(jnp.issubdtype(array.dtype, kind))
