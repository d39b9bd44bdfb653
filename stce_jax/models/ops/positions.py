"""Position embeddings: fixed ones, and learned ones brought to another grid.

Shape letters: N tokens, M keys, A attention heads, D model width, h w grid.
"""

import math

import jax
import numpy as np
from jaxtyping import Array, Float

Grid = tuple[int, int]  # (h, w)


def sincos_position_embedding(grid: tuple[int, int], width: int) -> Float[np.ndarray, "1 N D"]:
    """The fixed two-dimensional sine-cosine position embedding of MoCo v3 (Chen et al. 2021).

    Args:
      grid: (h, w) of the tokens.
      width: D, a multiple of 4.

    Returns:
      float32 in -1..1: sines and cosines of the column, then of the row.
    """
    frequency = 1.0 / 10000.0 ** (np.arange(width // 4) / (width // 4))  # [D/4]
    row, column = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    angles = [position.reshape(-1, 1) * frequency for position in (column, row)]  # each [N, D/4]
    parts = [function(angle) for angle in angles for function in (np.sin, np.cos)]
    return np.concatenate(parts, axis=1)[None].astype(np.float32)  # [1, N, D]


def resize_position_embedding(
    embedding: Float[Array, "1 N D"], old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Float[Array, "1 M D"]:
    """Resamples the position embedding of one grid to another (bicubic, antialiased)."""
    if old_grid == new_grid:
        return embedding
    width = embedding.shape[-1]
    image = embedding.reshape(1, *old_grid, width)  # [1, h, w, D]
    image = jax.image.resize(image, (1, *new_grid, width), method="bicubic")
    return image.reshape(1, new_grid[0] * new_grid[1], width)  # [1, M, D]


def resize_position_bias(
    bias: Float[Array, "A N M"], old_grids: tuple[Grid, Grid], new_grids: tuple[Grid, Grid]
) -> Float[Array, "A P Q"]:
    """Resamples a bias of each query's and key's place to other grids of them (bicubic, antialiased).

    Args:
      bias: of every head.
      old_grids: (h, w) of the N queries and of the M keys.
      new_grids: the same of the P queries and Q keys.
    """
    heads = bias.shape[0]
    maps = jax.image.resize(
        bias.reshape(heads, *old_grids[0], *old_grids[1]), (heads, *new_grids[0], *new_grids[1]), method="bicubic"
    )
    return maps.reshape(heads, math.prod(new_grids[0]), math.prod(new_grids[1]))
