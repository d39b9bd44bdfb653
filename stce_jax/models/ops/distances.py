"""Distances between tokens, exact where tokens are close.

Shape letters: B batch, n tokens, R of them at once, D model width.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stce_jax.models.ops.precision import widened

_ROWS = 8  # R: bounds the memory, should XLA not fuse the differences into their sum


def squared_distances(points: Float[Array, "B n D"]) -> Float[Array, "B n n"]:
    """Squared Euclidean distances between the points of each image, float32 at least; those to themselves are zero.

    Sums of squared differences. |a|^2 + |b|^2 - 2ab would be one product, but in float32 it loses the small distances,
    which decide who is nearest, and leaves points at a distance from themselves.
    """
    points = widened(points)
    batch, count, width = points.shape
    steps = -(-count // _ROWS)
    rows = jnp.pad(points, ((0, 0), (0, steps * _ROWS - count), (0, 0))).reshape(batch, steps, _ROWS, width)

    def to_all(some: Float[Array, "B R D"]) -> Float[Array, "B R n"]:
        return jnp.square(some[:, :, None] - points[:, None]).sum(axis=-1)

    squared = jax.lax.map(to_all, rows.swapaxes(0, 1))  # [steps, B, R, n]
    return squared.swapaxes(0, 1).reshape(batch, steps * _ROWS, count)[:, :count]
