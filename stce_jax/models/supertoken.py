"""Super-token clustering: the parameter-free half of the super-token convolution embedding.

An image's feature map is cut into cells, each cell's mean is a first super token, and a few rounds of soft k-means
move the super tokens towards the features that look like them. A token compares itself with the 3x3 super tokens
around its own cell only, so a super token never travels far.

Source: Eqs. 2-4 of the STCE paper (doi 10.9728/dcs.2024.25.2.485), read as the super-token sampling of SViT
(Huang et al., arXiv 2211.11167) without its refinement attention and without scattering back to tokens.

Shape letters: B batch; H W feature height and width; h w super-token grid; C channels; K = 9 neighbours;
P = tokens in a band (the tokens of one row of cells); R = 3 (w + 2), the super tokens of the three rows of cells that a
band can see, with one cell of border left and right.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from stce_jax.errors import ConfigError

BORDERS = ("zero", "mask")
# TPUs and recent GPUs otherwise multiply float32 in fewer bits; the products are about 1% of a model's time.
_PRECISION = jax.lax.Precision.HIGHEST


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
    # A band is one row of cells. In memory it is contiguous, so cutting the map into bands moves nothing.
    bands = features.reshape(batch, rows, cell_rows * columns * cell_columns, channels)  # [B, h, P, C]
    visible = _visible_super_tokens(rows, columns, cell_rows, cell_columns, border)  # [1 or h, P, R]

    constant_bands = bands if differentiable else jax.lax.stop_gradient(bands)
    seeds = _cell_means(constant_bands.reshape(features.shape), cell)  # [B, h, w, C]

    def iterate(super_tokens, _):
        return _aggregate(constant_bands, _affinity(constant_bands, super_tokens, visible), columns), None

    super_tokens, _ = jax.lax.scan(iterate, seeds, None, length=iterations - 1)
    affinity = _affinity(constant_bands, super_tokens, visible)  # [B, h, P, R]
    tokens = _aggregate(bands, affinity, columns)
    chex.assert_shape(tokens, (batch, rows, columns, channels))
    return tokens, _nine_neighbours(affinity, columns, cell_rows, cell_columns)


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


def _visible_super_tokens(rows, columns, cell_rows, cell_columns, border):
    """Which of the R super tokens beside a band each of its P tokens compares itself with: bool [1 or h, P, R]."""
    own_column = np.tile(np.repeat(np.arange(columns), cell_columns), cell_rows)  # [P]
    column = np.tile(np.arange(-1, columns + 1), 3)  # [R]
    near = np.abs(own_column[:, None] - column[None, :]) <= 1  # [P, R]
    if border == "zero":
        return near[None]
    row = np.arange(rows)[:, None] + np.repeat(np.arange(-1, 2), columns + 2)[None, :]  # [h, R]
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    return near[None] & inside[:, None, :]


def _affinity(bands, super_tokens, visible):
    """Eq. 3: bands [B, h, P, C], super tokens [B, h, w, C] -> softmax over the visible ones [B, h, P, R]."""
    batch, rows, columns, channels = super_tokens.shape
    scaled = super_tokens * (1.0 / np.sqrt(channels).item())  # there are fewer of them than of tokens
    padded = jnp.pad(scaled, ((0, 0), (1, 1), (1, 1), (0, 0)))  # [B, h+2, w+2, C]
    three_rows = jnp.stack([padded[:, dy : dy + rows] for dy in range(3)], axis=2)  # [B, h, 3, w+2, C]
    three_rows = three_rows.reshape(batch, rows, 3 * (columns + 2), channels)  # [B, h, R, C]
    logits = jnp.einsum("bhpc,bhrc->bhpr", bands, three_rows, precision=_PRECISION)
    logits = jnp.where(visible, logits, -jnp.inf)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    return weights / weights.sum(axis=-1, keepdims=True)


def _aggregate(bands, affinity, columns):
    """Eq. 4: bands [B, h, P, C], affinity [B, h, P, R] -> affinity-weighted means [B, h, w, C]."""
    batch, rows, _, channels = bands.shape
    sums = jnp.einsum("bhpr,bhpc->bhrc", affinity, bands, precision=_PRECISION)
    sums = _sum_onto_grid(sums.reshape(batch, rows, 3, columns + 2, channels))  # [B, h, w, C]
    shares = _sum_onto_grid(affinity.sum(axis=2).reshape(batch, rows, 3, columns + 2, 1))  # [B, h, w, 1]
    return sums / (shares + 1e-12)


def _sum_onto_grid(contributions):
    """Adds what each band gives to the rows above, at and below it: [B, h, 3, w+2, C] -> [B, h, w, C]."""
    # Row y receives from the band below it (as its row above), from its own, and from the band above it.
    above, own, below = (contributions[:, :, dy, 1:-1] for dy in range(3))  # each [B, h, w, C]
    from_below = jnp.pad(above[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0)))
    from_above = jnp.pad(below[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0)))
    return from_below + own + from_above


def _nine_neighbours(affinity, columns, cell_rows, cell_columns):
    """[B, h, P, R] -> [B, h*rows, w*columns, 9]: of each band's R super tokens the nine around the token's cell."""
    batch, rows, _, _ = affinity.shape
    affinity = affinity.reshape(batch, rows, cell_rows, columns, cell_columns, 3, columns + 2)
    column = np.arange(columns)
    nine = jnp.stack([affinity[:, :, :, column, :, :, column + dx] for dx in range(3)], axis=-1)
    # Advanced indexing put the cell's column first: [w, B, h, rows, columns, 3, 3]
    nine = nine.transpose(1, 2, 3, 0, 4, 5, 6)
    return nine.reshape(batch, rows * cell_rows, columns * cell_columns, 9)
