"""What several operations share: the dtype of the computation, shapes that meet, what a backward pass recomputes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped


def widened(inputs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """As float32, or wider where the inputs are wider."""
    return inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))


def of_rank(rank: int, inputs: Shaped[Array, "*shape"]) -> Shaped[Array, "*ones_and_shape"]:
    """With as many axes of size 1 in front as make `rank` of them, for users who have JAX refuse to add them itself."""
    return jnp.expand_dims(inputs, tuple(range(rank - inputs.ndim)))


def recompute_from(
    saved: Shaped[Array, "*shape"], cotangent: Shaped[Array, "*other"]
) -> tuple[Shaped[Array, "*shape"], Shaped[Array, "*other"]]:
    """(saved, cotangent) of a backward pass, such that what is computed from `saved` is computed then, and not before.

    XLA would otherwise find that the forward pass has computed the same and keep that, or compute it long before the
    cotangent is there; either takes memory. (For CPUs it orders the work without the barrier, and may still be early.)
    """
    return jax.lax.optimization_barrier((saved, cotangent))
