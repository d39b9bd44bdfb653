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


def resize_bicubic(grid: Float[np.ndarray, "h w D"], size: tuple[int, int]) -> Float[np.ndarray, "H W D"]:
    """Resamples a grid as PyTorch's F.interpolate(mode="bicubic", align_corners=False), without antialiasing.

    That is cubic convolution (Keys 1981) with a = -0.75, where `jax.image.resize` has -0.5; beyond the border lies its
    last value. In NumPy and double precision: every process of a run gets the same array.

    Args:
      grid: any floats.
      size: (H, W), each >= 1.

    Returns:
      An array of the grid's dtype.
    """
    rows, columns = (_bicubic_matrix(old, new) for old, new in zip(grid.shape[:2], size, strict=True))
    resized = np.einsum("Hh,Ww,hwd->HWd", rows, columns, grid.astype(np.float64), optimize=True)
    return resized.astype(grid.dtype)


def _bicubic_matrix(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """What each of `new` places along a line takes of each of `old`."""
    place = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(place).astype(int) - 1  # of the four places that one is made of
    taken = first[:, None] + np.arange(4)  # [new, 4]
    distance = np.abs(place[:, None] - taken)
    near = (1.25 * distance - 2.25) * distance**2 + 1.0  # up to 1, a = -0.75
    far = -0.75 * (((distance - 5.0) * distance + 8.0) * distance - 4.0)  # up to 2
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new)[:, None], taken.clip(0, old - 1)), np.where(distance <= 1.0, near, far))
    return matrix


def resize_position_bias(
    bias: Float[np.ndarray, "A N M"], old_grids: tuple[Grid, Grid], new_grids: tuple[Grid, Grid]
) -> Float[np.ndarray, "A P Q"]:
    """Resamples a bias of each query's and key's place to other grids of them, see `resize_bicubic`.

    Args:
      bias: of every head.
      old_grids: (h, w) of the N queries and of the M keys.
      new_grids: the same of the P queries and Q keys.
    """
    heads, (old_queries, old_keys), (queries, keys) = bias.shape[0], old_grids, new_grids
    count, old_count = math.prod(queries), math.prod(old_keys)
    of_queries = bias.transpose(1, 0, 2).reshape(*old_queries, heads * old_count)  # [h, w, A M]
    of_keys = resize_bicubic(of_queries, queries).reshape(count * heads, old_count).T  # [M, P A]
    resized = resize_bicubic(of_keys.reshape(*old_keys, count * heads), keys)
    return resized.reshape(-1, count, heads).transpose(2, 1, 0)
