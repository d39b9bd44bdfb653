"""Rotary positions in two dimensions: queries and keys are turned by angles that grow with their place in the grid.

Source: Heo et al. 2024, "Rotary Position Embedding for Vision Transformer", arXiv 2403.13298, and its published code
(RoPE-ViT), whose models have no learned positions beside these; Su et al. 2021 (RoFormer) for one dimension.

Shape letters: B batch (1: alike for all images), N tokens, A attention heads, E width of a head, F = E / 2 pairs of
channels, h w grid.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from stce_jax.models.ops.precision import of_rank, widened

ROTARY = ("rope_axial", "rope_mixed")
AXIAL_THETA, MIXED_THETA = 100.0, 10.0  # the published code's
MULTIPLE = 4  # of E: pairs of channels for columns and as many for rows


def grid_places(grid: tuple[int, int]) -> Float[np.ndarray, "1 N 2"]:
    """(column, row) of each token of a grid (h, w), row by row, counted from 0; float32."""
    row, column = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    return np.stack([column, row], axis=-1).reshape(1, -1, 2).astype(np.float32)


def axial_frequencies(width: int) -> Float[np.ndarray, "2 1 F"]:
    """Fixed frequencies, for columns and rows: the first half of the pairs turns with one, the second with the other.

    Args:
      width: E, a multiple of 4.
    """
    magnitude, none = _magnitudes(width, AXIAL_THETA), np.zeros(width // 4, np.float32)
    both = [np.concatenate(parts) for parts in ((magnitude, none), (none, magnitude))]
    return np.stack(both)[:, None]


def mixed_frequencies(
    key: Key[Array, ""], shape: tuple[int, int, int], dtype: jnp.dtype = jnp.float32
) -> Float[Array, "2 A F"]:
    """Initial values of learned frequencies, for columns and rows: the axial directions, turned at random in each head.

    Args:
      key: PRNG key.
      shape: (2, A, F), F even.
      dtype: of the result.
    """
    _, heads, pairs = shape
    magnitude = _magnitudes(2 * pairs, MIXED_THETA)
    turned = jax.random.uniform(key, (heads, 1), jnp.float32, 0.0, 2.0 * math.pi)
    parts = [jnp.broadcast_to(turned + quarter, (heads, pairs // 2)) for quarter in (0.0, math.pi / 2)]
    angle = jnp.concatenate(parts, axis=1)  # [A, F]
    return (jnp.stack([jnp.cos(angle), jnp.sin(angle)]) * of_rank(3, jnp.tile(magnitude, 2))).astype(dtype)


def _magnitudes(width: int, theta: float) -> Float[np.ndarray, "E/4"]:
    return (theta ** (-np.arange(0, width, 4) / width)).astype(np.float32)


def rotation_angles(places: Float[Array, "B N 2"], frequencies: Float[Array, "2 #A F"]) -> Float[Array, "B N #A F"]:
    """By how many radians each pair of channels is turned; float32. A place (0, 0) is not turned."""
    column, row = (jnp.asarray(places, jnp.float32)[..., axis, None, None] for axis in (0, 1))  # each [B, N, 1, 1]
    of_columns, of_rows = (jnp.asarray(frequencies, jnp.float32)[axis][None, None] for axis in (0, 1))
    return column * of_columns + row * of_rows  # no product of matrices, which GPUs would round


def rotate(values: Float[Array, "B N A E"], angles: Float[Array, "#B N #A F"]) -> Float[Array, "B N A E"]:
    """Turns each pair of neighbouring channels by its angle, in float32 at least; keeps the dtype.

    As sums of whole arrays: CPUs take a third longer for two arrays of every second channel.
    """
    wide = widened(values)
    swapped = wide.reshape(*values.shape[:-1], values.shape[-1] // 2, 2)[..., ::-1].reshape(values.shape)
    sine = jnp.stack([-jnp.sin(angles), jnp.sin(angles)], axis=-1).reshape(*angles.shape[:-1], values.shape[-1])
    return (wide * jnp.repeat(jnp.cos(angles), 2, axis=-1) + swapped * sine).astype(values.dtype)
