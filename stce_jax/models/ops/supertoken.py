"""Super-token clustering: the parameter-free half of the super-token convolution embedding.

An image's feature map is cut into cells, each cell's mean is a first super token, and a few rounds of soft k-means
move the super tokens towards the features that look like them. A token compares itself with the 3x3 super tokens
around its own cell only, so a super token never travels far.

Source: Eqs. 2-4 of the STCE paper (doi 10.9728/dcs.2024.25.2.485), read as the super-token sampling of SViT
(Huang et al., arXiv 2211.11167) without its refinement attention and without scattering back to tokens.

Shape letters: B batch; H W feature height and width; h w super-token grid; C channels; K = 9 neighbours. The grid is
cut into G = v u blocks, v down and u across, of m x n cells each; P = tokens in a block; R = (m + 2) (n + 2), the super
tokens that they can see: the block's own and one cell of border around it.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from stce_jax.errors import ConfigError

BORDERS = ("zero", "mask")
# TPUs and recent GPUs otherwise multiply float32 in fewer bits; the products are about 1% of a model's time.
_PRECISION = jax.lax.Precision.HIGHEST
# A block's sides in cells, at most. All tokens of a block are multiplied with all super tokens that any of them sees,
# and a mask leaves each its nine: products in place of gathers. So what a token costs grows with the block; were blocks
# as wide as the map, what an image costs would grow faster than its tokens.
_BLOCK = (2, 2)


def cell_shape(cell):
    """`cell` as (rows, columns).

    Args:
      cell: a positive int, alone or in a tuple, for square cells, or a pair (rows, columns); in feature-map pixels.

    Raises:
      ConfigError: `cell` is neither.
    """
    shape = tuple(cell) if isinstance(cell, tuple | list) else (cell,)
    shape = shape * 2 if len(shape) == 1 else shape
    if len(shape) != 2 or not all(isinstance(side, int) and side > 0 for side in shape):
        raise ConfigError(f"cell is {cell!r}; it must be a positive whole number, or a pair (rows, columns) of them")
    return shape


def grid_shape(height, width, cell):
    """The super-token grid (h, w) of a [height, width] feature map: its sides divided by the cell's, rounded up."""
    cell_rows, cell_columns = cell_shape(cell)
    return -(-height // cell_rows), -(-width // cell_columns)


def pool_cells(features, cell):
    """The cells' means alone (Eq. 2), what the clustering starts from: [B, H, W, C] -> [B, h, w, C].

    Gradients flow; otherwise as `cluster_super_tokens`: float32 at least, zeros pad at the bottom and the right.
    """
    chex.assert_rank(features, 4)
    features, _ = _padded(features, cell)
    return _cell_means(features, cell)


def cluster_super_tokens(features, cell, iterations=3, *, border="zero", differentiable=False):
    """Clusters a feature map into a grid of super tokens.

    Starting from the cells' means S, each iteration computes for every token x_p its affinity to the 3x3 super
    tokens around its cell, softmax_k(<x_p, S_k> / sqrt(C)), and then replaces each super token by the mean of the
    tokens around it weighted by their affinities. A feature map that the cells do not divide is padded with zeros at
    the bottom and the right; padded tokens take part.

    Args:
      features: [B, H, W, C], any float dtype; computed in float32, or in float64 if they are float64.
      cell: cell size in pixels of the feature map, an int or (rows, columns).
      iterations: T >= 1, the number of affinity computations, each followed by one aggregation.
      border: what a token at the grid's border makes of the neighbours beyond it. "zero" (SViT): they count as zero
        vectors, logit 0, and the share of affinity they receive is dropped. "mask": logit minus infinity, nothing
        is dropped.
      differentiable: if False (SViT), affinities and their sums are constants of the gradient, so tokens reach the
        features only as a weighted mean; if True, gradients flow through every iteration.

    Returns:
      (tokens, affinity): tokens [B, h, w, C], and the last affinities [B, h * rows, w * columns, 9] over the padded
      map, in 0..1. Neighbour k = 3 * (dy + 1) + (dx + 1) is the cell at offset (dy, dx), dy, dx in -1..1; the nine
      sum to one, out-of-grid neighbours included. Both in the dtype of the computation.

    Raises:
      ConfigError: an unknown border, fewer than one iteration, or a bad cell.
    """
    chex.assert_rank(features, 4)
    if border not in BORDERS:
        raise ConfigError(f"border is {border!r}; it must be one of {', '.join(BORDERS)}")
    if iterations < 1:
        raise ConfigError(f"iterations is {iterations}; clustering needs at least 1")
    cell_rows, cell_columns = cell_shape(cell)
    features, (rows, columns) = _padded(features, cell)
    batch, _, _, channels = features.shape
    blocks = _cut_into_blocks(rows, columns, cell_rows, cell_columns, border)
    tokens = _arrange(features, blocks)  # [B, G, P, C]
    constant = tokens if differentiable else jax.lax.stop_gradient(tokens)
    seeds = _cell_means(features if differentiable else jax.lax.stop_gradient(features), cell)  # [B, h, w, C]

    def iterate(super_tokens, _):
        return _aggregate(constant, _affinity(constant, super_tokens, blocks), blocks), None

    super_tokens, _ = jax.lax.scan(iterate, seeds, None, length=iterations - 1)
    affinity = _affinity(constant, super_tokens, blocks)  # [B, G, P, R]
    super_tokens = _aggregate(tokens, affinity, blocks)
    chex.assert_shape(super_tokens, (batch, rows, columns, channels))
    return super_tokens, _nine_neighbours(affinity, blocks)


def _padded(features, cell):
    """(features as float32 at least, filled up to whole cells [B, h*rows, w*columns, C], the grid (h, w))."""
    _, height, width, _ = features.shape
    cell_rows, cell_columns = cell_shape(cell)
    rows, columns = grid_shape(height, width, cell)
    features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    bottom, right = rows * cell_rows - height, columns * cell_columns - width
    return jnp.pad(features, ((0, 0), (0, bottom), (0, right), (0, 0))), (rows, columns)


def _cell_means(features, cell):
    """[B, h*rows, w*columns, C] -> [B, h, w, C]."""
    batch, height, width, channels = features.shape
    cell_rows, cell_columns = cell_shape(cell)
    cells = features.reshape(batch, height // cell_rows, cell_rows, width // cell_columns, cell_columns, channels)
    return cells.mean(axis=(2, 4))


class _Blocks(NamedTuple):
    """How a grid is cut.

    Attributes:
      grid: (h, w).
      cell: its (rows, columns) of pixels.
      count: (v, u).
      sides: (m, n).
      near: bool [P, R], the nine super tokens around each token's own cell.
      visible: bool [1 or G, P, R], which of them each token compares itself with.
      real: bool [G, P], False for the tokens that only fill up the last blocks; None if there are none.
    """

    grid: tuple[int, int]
    cell: tuple[int, int]
    count: tuple[int, int]
    sides: tuple[int, int]
    near: np.ndarray
    visible: np.ndarray
    real: np.ndarray | None


def _cut_into_blocks(rows, columns, cell_rows, cell_columns, border):
    grid, cell = (rows, columns), (cell_rows, cell_columns)
    count = tuple(-(-side // most) for side, most in zip(grid, _BLOCK, strict=True))
    sides = tuple(-(-side // blocks) for side, blocks in zip(grid, count, strict=True))
    (own_row, own_column), (row, column) = _places(sides, cell), _places(sides, (1, 1), border=1)
    near = (abs(own_row[:, None] - row) <= 1) & (abs(own_column[:, None] - column) <= 1)  # [P, R]
    down, across = (corner.reshape(-1, 1) for corner in np.indices(count))  # each [G, 1]
    top, left = down * sides[0], across * sides[1]  # the block's first cell
    real = (top + own_row < rows) & (left + own_column < columns)  # [G, P]
    visible = near[None]
    if border == "mask":
        row, column = top + row, left + column  # each [G, R]
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        visible = near & inside[:, None, :] | ~real[:, :, None]  # those outside need something to divide by, too
    return _Blocks(grid, cell, count, sides, near, visible, None if real.all() else real)


def _places(sides, cell, border=0):
    """(row, column) of the cell of every pixel of a block, row by row, counted from the block's first cell."""
    places = [np.repeat(np.arange(-border, n + border), size) for n, size in zip(sides, cell, strict=True)]
    return [place.reshape(-1) for place in np.meshgrid(*places, indexing="ij")]


def _missing(blocks):
    """Rows and columns of cells that fill up the last blocks."""
    return [n * m - side for n, m, side in zip(blocks.count, blocks.sides, blocks.grid, strict=True)]


def _arrange(features, blocks):
    """[B, h*rows, w*columns, C] -> [B, G, P, C]; with one block across it moves nothing."""
    batch, _, _, channels = features.shape
    (v, u), (m, n), (cell_rows, cell_columns) = blocks.count, blocks.sides, blocks.cell
    below, right = _missing(blocks)
    features = jnp.pad(features, ((0, 0), (0, below * cell_rows), (0, right * cell_columns), (0, 0)))
    features = features.reshape(batch, v, m * cell_rows, u, n * cell_columns, channels)
    return features.transpose(0, 1, 3, 2, 4, 5).reshape(batch, v * u, -1, channels)


def _affinity(tokens, super_tokens, blocks):
    """Eq. 3: tokens [B, G, P, C], super tokens [B, h, w, C] -> softmax over the visible ones [B, G, P, R]."""
    batch, _, _, channels = super_tokens.shape
    scaled = super_tokens * (1.0 / np.sqrt(channels).item())  # there are fewer of them than of tokens
    below, right = _missing(blocks)
    around = jnp.pad(scaled, ((0, 0), (1, 1 + below), (1, 1 + right), (0, 0)))  # [B, vm+2, un+2, C]
    around = _windows(_windows(around, 1, blocks.sides[0]), 3, blocks.sides[1])  # [B, v, m+2, u, n+2, C]
    around = around.transpose(0, 1, 3, 2, 4, 5).reshape(batch, tokens.shape[1], -1, channels)  # [B, G, R, C]
    logits = jnp.einsum("bgpc,bgrc->bgpr", tokens, around, precision=_PRECISION)
    logits = jnp.where(blocks.visible, logits, -jnp.inf)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    affinity = weights / weights.sum(axis=-1, keepdims=True)
    return affinity if blocks.real is None else affinity * blocks.real[:, :, None]


def _aggregate(tokens, affinity, blocks):
    """Eq. 4: tokens [B, G, P, C], affinity [B, G, P, R] -> affinity-weighted means [B, h, w, C]."""
    sums = jnp.einsum("bgpr,bgpc->bgrc", affinity, tokens, precision=_PRECISION)
    shares = affinity.sum(axis=2)[..., None]  # [B, G, R, 1]
    return _onto_grid(sums, blocks) / (_onto_grid(shares, blocks) + 1e-12)


def _onto_grid(contributions, blocks):
    """Adds what the blocks give to each super token: [B, G, R, C] -> [B, h, w, C]."""
    batch, _, _, channels = contributions.shape
    (v, u), (m, n), (rows, columns) = blocks.count, blocks.sides, blocks.grid
    contributions = contributions.reshape(batch, v, u, m + 2, n + 2, channels)
    contributions = contributions.transpose(0, 1, 3, 2, 4, 5)  # [B, v, m+2, u, n+2, C]
    return _add_windows(_add_windows(contributions, 3), 1)[:, :rows, :columns]


def _windows(padded, axis, size):
    """Cuts an axis of blocks * size + 2 entries into windows that overlap by two: [blocks, size + 2] instead."""
    shape = (*padded.shape[:axis], -1, size, *padded.shape[axis + 1 :])
    before, own, after = (
        jax.lax.slice_in_dim(padded, start, padded.shape[axis] - 2 + start, axis=axis).reshape(shape)
        for start in range(3)
    )
    first = jax.lax.slice_in_dim(before, 0, 1, axis=axis + 1)
    last = jax.lax.slice_in_dim(after, size - 1, size, axis=axis + 1)
    return jnp.concatenate([first, own, last], axis=axis + 1)


def _add_windows(windows, axis):
    """The reverse of `_windows`: [blocks, size + 2] becomes blocks * size, overlaps added, the two ends dropped."""
    shape = windows.shape
    count, size = shape[axis], shape[axis + 1] - 2
    windows = windows.reshape(*shape[: axis + 2], -1)  # what comes after as one axis
    none = [(0, 0)] * axis
    to_previous = jnp.pad(windows[..., 1:, :1, :], (*none, (0, 1), (size - 1, 0), (0, 0)))
    to_next = jnp.pad(windows[..., :-1, -1:, :], (*none, (1, 0), (0, size - 1), (0, 0)))
    return (windows[..., 1:-1, :] + to_previous + to_next).reshape(*shape[:axis], count * size, *shape[axis + 2 :])


def _nine_neighbours(affinity, blocks):
    """[B, G, P, R] -> [B, h*rows, w*columns, 9]: of each token's R super tokens the nine around its cell."""
    batch = affinity.shape[0]
    (v, u), (m, n), (cell_rows, cell_columns) = blocks.count, blocks.sides, blocks.cell
    nine = np.nonzero(blocks.near)[1].reshape(1, 1, -1, 9)  # each token has nine, row by row
    affinity = jnp.take_along_axis(affinity, nine, axis=-1)  # [B, G, P, 9]
    affinity = affinity.reshape(batch, v, u, m * cell_rows, n * cell_columns, 9)
    affinity = affinity.transpose(0, 1, 3, 2, 4, 5).reshape(batch, v * m * cell_rows, u * n * cell_columns, 9)
    return affinity[:, : blocks.grid[0] * cell_rows, : blocks.grid[1] * cell_columns]
