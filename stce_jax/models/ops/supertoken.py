"""Super-token clustering: the parameter-free half of the super-token convolution embedding.

An image's feature map is cut into cells, each cell's mean is a first super token, and a few rounds of soft k-means
move the super tokens towards the features that look like them. A pixel of the map compares itself with the 3x3 super
tokens around its own cell only, so a super token never travels far.

Source: Eqs. 2-4 of the STCE paper (doi 10.9728/dcs.2024.25.2.485), read as the super-token sampling of SViT
(Huang et al., arXiv 2211.11167) without its refinement attention and without scattering back to pixels.
`SuperTokenAssociation` has what SViT's attention needs beyond that.

Shape letters: B batch; H W feature height and width; h w super-token grid; C channels; K = 9 neighbours; G blocks, P
pixels of a block, R super tokens that they can see: see `blocks`.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stce_jax.errors import ConfigError, check_choice, check_whole, shown
from stce_jax.models.ops import blocks
from stce_jax.models.ops.precision import of_rank, widened

BORDERS = ("zero", "mask")
MOST_ITERATIONS = 1000
LARGEST_CELL = 1024  # rows or columns of features
Cell = int | tuple[int, ...] | list[int]
# TPUs and recent GPUs otherwise multiply float32 in fewer bits; the products are about 1% of a model's time.
_PRECISION = jax.lax.Precision.HIGHEST
# A block's sides in cells, at most. What a pixel costs grows with the block; were blocks as wide as the map, what an
# image costs would grow faster than its pixels.
_BLOCK = (2, 2)


def cell_shape(cell: Cell) -> tuple[int, int]:
    """`cell` as (rows, columns).

    Args:
      cell: a positive int, alone or in a tuple, for square cells, or a pair (rows, columns); in feature-map pixels.

    Raises:
      ConfigError: `cell` is neither.
    """
    shape = tuple(cell) if isinstance(cell, tuple | list) else (cell,)
    shape = shape * 2 if len(shape) == 1 else shape
    whole = all(isinstance(side, int) and not isinstance(side, bool) for side in shape)
    if len(shape) != 2 or not whole or not 0 < min(shape) <= max(shape) <= LARGEST_CELL:
        raise ConfigError(
            f"cell is {shown(cell)}; it must be a whole number between 1 and {LARGEST_CELL}, or a pair (rows, columns) "
            "of them"
        )
    return shape[0], shape[1]


def grid_shape(height: int, width: int, cell: Cell) -> tuple[int, int]:
    """The super-token grid (h, w) of a [height, width] feature map: its sides divided by the cell's, rounded up."""
    cell_rows, cell_columns = cell_shape(cell)
    return -(-height // cell_rows), -(-width // cell_columns)


def pool_cells(features: Float[Array, "B H W C"], cell: Cell) -> Float[Array, "B h w C"]:
    """The cells' means alone (Eq. 2), what the clustering starts from.

    Gradients flow; otherwise as `cluster_super_tokens`: float32 at least, zeros pad at the bottom and the right.
    """
    chex.assert_rank(features, 4)
    return _cell_means(_padded(features, cell), cell)


def cluster_super_tokens(
    features: Float[Array, "B H W C"],
    cell: Cell,
    iterations: int = 3,
    *,
    border: str = "zero",
    differentiable: bool = False,
) -> tuple[Float[Array, "B h w C"], Float[Array, "B h*rows w*columns 9"]]:
    """Clusters a feature map into a grid of super tokens.

    Starting from the cells' means S, each iteration computes for every pixel x_p its affinity to the 3x3 super tokens
    around its cell, softmax_k(<x_p, S_k> / sqrt(C)), and then replaces each super token by the mean of the pixels
    around it weighted by their affinities. A feature map that the cells do not divide is padded with zeros at the
    bottom and the right; padded pixels take part.

    Args:
      features: any float dtype; computed in float32, or in float64 if they are float64.
      cell: cell size in pixels of the feature map, an int or (rows, columns).
      iterations: T >= 1, the number of affinity computations, each followed by one aggregation.
      border: what a pixel at the grid's border makes of the neighbours beyond it. "zero" (SViT): they count as zero
        vectors, logit 0, and the share of affinity they receive is dropped. "mask": logit minus infinity, nothing
        is dropped.
      differentiable: if False (SViT), affinities and their sums are constants of the gradient, so super tokens reach
        the features only as a weighted mean; if True, gradients flow through every iteration.

    Returns:
      (super tokens, affinity): the last affinities over the padded map, in 0..1. Neighbour k = 3 * (dy + 1) + (dx + 1)
      is the cell at offset (dy, dx), dy, dx in -1..1; the nine sum to one, out-of-grid neighbours included. Both in the
      dtype of the computation.

    Raises:
      ConfigError: an unknown border, fewer than one iteration, or a bad cell.
    """
    association, pixels = _associate(features, cell, iterations, border, differentiable)
    super_tokens = _means(pixels, association.affinities, association.layout)
    chex.assert_shape(super_tokens, (features.shape[0], *association.layout.grid, features.shape[-1]))
    return super_tokens, association.affinity()


def associate(
    features: Float[Array, "B H W C"],
    cell: Cell,
    iterations: int = 3,
    *,
    border: str = "zero",
    differentiable: bool = False,
    initial: Float[Array, "B h w C"] | None = None,
) -> "SuperTokenAssociation":
    """The affinities that `cluster_super_tokens` computes, in a form that aggregates and scatters any values.

    `associate(x, ...).aggregate(x)` are the super tokens of `cluster_super_tokens(x, ...)`. SViT's attention has
    iterations 1, aggregates, attends, and scatters what it gets.

    Args:
      initial: the super tokens of the first iteration; None: the cells' means.

    The other arguments and the errors are those of `cluster_super_tokens`.
    """
    return _associate(features, cell, iterations, border, differentiable, initial)[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SuperTokenAssociation:
    """How much each pixel belongs to the super tokens around its cell; a pytree. Made by `associate`.

    The affinities lie block by block, and `aggregate` and `scatter` are products of blocks: the nine neighbours of each
    pixel are put together by `affinity` alone.

    Attributes:
      affinities: those of each block's pixels to all super tokens that the block can see, 0 beyond a pixel's nine.
      layout: where the blocks lie.
      size: (H, W) of the features, before padding.
    """

    affinities: Float[Array, "B G P R"]
    layout: blocks.Layout = dataclasses.field(metadata={"static": True})
    size: tuple[int, int] = dataclasses.field(metadata={"static": True})

    def aggregate(self, values: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        """The means of values around each super token, weighted by affinity (Eq. 4): A^T X / (sum A + 1e-12).

        Computed in float32 at least, and returned so. A map that the cells do not divide is padded with zeros, which
        count in the means, as in SViT.
        """
        return _means(self._pixels(values), self.affinities, self.layout)

    def shares(self) -> Float[Array, "B h w"]:
        """How many pixels each super token stands for, padded ones included: the sums of its affinities."""
        return _shares(self.affinities, self.layout)[..., 0]

    def scatter(self, super_tokens: Float[Array, "B h w C"]) -> Float[Array, "B H W C"]:
        """For each pixel, the sum of the super tokens around its cell weighted by its affinities: A S.

        Neighbours beyond the grid are zeros. Computed in float32 at least, and returned so.
        """
        chex.assert_shape(super_tokens, (self.affinities.shape[0], *self.layout.grid, None))
        seen = blocks.seen_by_blocks(widened(super_tokens), self.layout)  # [B, G, R, C]
        pixels = jnp.einsum("bgpr,bgrc->bgpc", self.affinities, seen, precision=_PRECISION)
        return blocks.from_blocks(pixels, self.layout)[:, : self.size[0], : self.size[1]]

    def affinity(self) -> Float[Array, "B h*rows w*columns 9"]:
        """Each pixel's affinities to its nine neighbours, over the padded map; see `cluster_super_tokens`."""
        nine = np.nonzero(self.layout.near)[1].reshape(1, 1, -1, 9)  # each pixel has nine, row by row
        return blocks.from_blocks(jnp.take_along_axis(self.affinities, nine, axis=-1), self.layout)

    def _pixels(self, values: Float[Array, "B H W C"]) -> Float[Array, "B G P C"]:
        chex.assert_shape(values, (self.affinities.shape[0], *self.size, None))
        return blocks.to_blocks(_padded(values, self.layout.cell), self.layout)


def _associate(
    features: Array, cell: Cell, iterations: int, border: str, differentiable: bool, initial: Array | None = None
) -> tuple[SuperTokenAssociation, Float[Array, "B G P C"]]:
    """(what `associate` returns, the features' pixels block by block)."""
    chex.assert_rank(features, 4)
    check_choice("border", border, BORDERS)
    check_whole("iterations", iterations, 1, MOST_ITERATIONS)
    _, height, width, channels = features.shape
    layout = blocks.cut(grid_shape(height, width, cell), cell_shape(cell), border, _BLOCK)
    features = _padded(features, cell)
    pixels = blocks.to_blocks(features, layout)  # [B, G, P, C]
    constant = pixels if differentiable else jax.lax.stop_gradient(pixels)
    if initial is None:
        initial = _cell_means(features if differentiable else jax.lax.stop_gradient(features), cell)  # [B, h, w, C]
    else:
        chex.assert_shape(initial, (features.shape[0], *layout.grid, channels))
        initial = (initial if differentiable else jax.lax.stop_gradient(initial)).astype(features.dtype)

    def iterate(super_tokens: Array, _: None) -> tuple[Array, None]:
        return _means(constant, _affinities(constant, super_tokens, layout), layout), None

    super_tokens, _ = jax.lax.scan(iterate, initial, None, length=iterations - 1)
    affinities = _affinities(constant, super_tokens, layout)  # [B, G, P, R]
    return SuperTokenAssociation(affinities, layout, (height, width)), pixels


def _padded(features: Float[Array, "B H W C"], cell: Cell) -> Float[Array, "B h*rows w*columns C"]:
    """As float32 at least, filled up with zeros to whole cells."""
    _, height, width, _ = features.shape
    (cell_rows, cell_columns), (rows, columns) = cell_shape(cell), grid_shape(height, width, cell)
    bottom, right = rows * cell_rows - height, columns * cell_columns - width
    return jnp.pad(widened(features), ((0, 0), (0, bottom), (0, right), (0, 0)))


def _cell_means(features: Float[Array, "B h*rows w*columns C"], cell: Cell) -> Float[Array, "B h w C"]:
    batch, height, width, channels = features.shape
    cell_rows, cell_columns = cell_shape(cell)
    cells = features.reshape(batch, height // cell_rows, cell_rows, width // cell_columns, cell_columns, channels)
    return cells.mean(axis=(2, 4))


def _affinities(
    pixels: Float[Array, "B G P C"], super_tokens: Float[Array, "B h w C"], layout: blocks.Layout
) -> Float[Array, "B G P R"]:
    """Eq. 3: the softmax over the super tokens that each pixel compares itself with."""
    scaled = super_tokens * (1.0 / np.sqrt(super_tokens.shape[-1]).item())  # there are fewer of them than of pixels
    seen = blocks.seen_by_blocks(scaled, layout)  # [B, G, R, C]
    logits = jnp.einsum("bgpc,bgrc->bgpr", pixels, seen, precision=_PRECISION)
    logits = jnp.where(layout.visible, logits, -jnp.inf)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    affinities = weights / weights.sum(axis=-1, keepdims=True)
    if layout.real is None:
        return affinities
    return affinities * of_rank(4, jax.lax.convert_element_type(layout.real[:, :, None], affinities.dtype))


def _means(
    pixels: Float[Array, "B G P C"], affinities: Float[Array, "B G P R"], layout: blocks.Layout
) -> Float[Array, "B h w C"]:
    """Eq. 4: the means of the pixels around each super token, weighted by affinity."""
    sums = jnp.einsum("bgpr,bgpc->bgrc", affinities, pixels, precision=_PRECISION)
    return blocks.add_to_grid(sums, layout) / (_shares(affinities, layout) + 1e-12)


def _shares(affinities: Float[Array, "B G P R"], layout: blocks.Layout) -> Float[Array, "B h w 1"]:
    return blocks.add_to_grid(affinities.sum(axis=2)[..., None], layout)
