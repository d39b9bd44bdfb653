"""What several operations share: the dtype of the computation, and shapes that meet."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped


def widened(inputs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """As float32, or wider where the inputs are wider."""
    return inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))


def wide_product(
    subscripts: str, left: Float[Array, "*left"], right: Float[Array, "*right"]
) -> Float[Array, "*product"]:
    """An einsum of two arrays, summed and returned in float32 at least."""
    accumulate = jnp.promote_types(left.dtype, jnp.float32)
    return jnp.einsum(subscripts, left, right, preferred_element_type=accumulate)


def of_rank(rank: int, inputs: Shaped[Array, "*shape"]) -> Shaped[Array, "*ones_and_shape"]:
    """With as many axes of size 1 in front as make `rank` of them, for users who have JAX refuse to add them itself."""
    return jnp.expand_dims(inputs, tuple(range(rank - inputs.ndim)))


def as_column(numbers: Float[Array, "*rows 1"]) -> Float[Array, "*rows 1"]:
    """The same numbers, one of each row, for operations on whole rows.

    XLA for CPUs lets its library for sums write such a number once for every place of its row, an array as large as the
    rows, which then is kept for the gradient. The library stops at a clamp, here one without limits.
    """
    infinity = np.array(np.inf, numbers.dtype)
    return jax.lax.clamp(-infinity, numbers, infinity)
