"""Distances between tokens, exact where tokens are close.

Shape letters: B batch, n tokens, D model width.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stce_jax.models.ops.precision import widened

_ROWS = 8  # computed at once: bounds the memory, should XLA not fuse the differences into their sum


def squared_distances(points: Float[Array, "B n D"]) -> Float[Array, "B n n"]:
    """Squared Euclidean distances between the points of each image, float32 at least; those to themselves are zero.

    Sums of squared differences. |a|^2 + |b|^2 - 2ab would be one product, but in float32 it loses the small distances,
    which decide who is nearest, and leaves points at a distance from themselves.
    """
    points = widened(points)

    def to_all(row: Float[Array, "B D"]) -> Float[Array, "B n"]:
        return jnp.square(points - row[:, None]).sum(axis=-1)

    return jax.lax.map(to_all, points.swapaxes(0, 1), batch_size=_ROWS).swapaxes(0, 1)
