"""Neighbourhood attention: each place of a map attends to the square around it.

Source: the definition of Hassani et al. 2023, "Neighborhood Attention Transformer", arXiv 2204.07143.

Shape letters: B batch, H W feature height and width, C channels, k side of a neighbourhood, t tiles of an axis, q
queries of a tile, l keys of a tile along an axis, n tiles of a map, A heads, E width of a head.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.models.layers import linear, truncated_normal
from stce_jax.models.ops.attention import dot_product_attention, fused_kernel
from stce_jax.models.ops.windows import from_windows, to_windows

UNSEEN = -1e9  # added to a logit, it leaves a weight of exactly 0 in float32 and in float64


class Tiles(NamedTuple):
    """How one axis of a map is cut into tiles of queries, and which keys these see.

    Attributes:
      length: q, queries of a tile; the last tile may reach beyond the map.
      starts: of the keys of each tile.
      span: l, keys of a tile.
      offsets: [t, q, l, 2 k - 1], one at the offset (key - query + k - 1) of each pair that is seen, else zeros.
    """

    length: int
    starts: list[int]
    span: int
    offsets: Float[np.ndarray, "t q l offsets"]


class NeighbourhoodAttention(nn.Module):
    """Multi-head attention of each place to the k x k places nearest to it, [B, H, W, C] -> [B, H, W, C].

    Near a border the square is moved inwards, so that all places see k x k; in a map with a shorter side they see all
    of that side. A learned bias for each offset is added.

    Computed by tiles of k x k queries, whose neighbourhoods lie in at most (2 k - 1) x (2 k - 1) places; what a query
    does not see is hidden. That is 3.4 times the products of the definition for k = 7, but needs slices of the map
    alone, and no gather.

    Attributes:
      heads: number of heads; must divide C.
      kernel: k, odd.
      dtype: dtype of the computation; parameters are float32.
      initializers: as in `WindowAttention`.
    """

    heads: int
    kernel: int
    dtype: jnp.dtype = jnp.float32
    initializers: Callable[[int], dict[str, Any]] | None = None

    @nn.compact
    def __call__(self, features: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        batch, height, width, channels = features.shape
        options = self.initializers(channels) if self.initializers else {}
        qkv = linear(3 * channels, self.dtype, "qkv", **options)(features.reshape(-1, channels))
        query, key_value = jnp.split(qkv.reshape(batch, height, width, 3 * channels), (channels,), axis=-1)
        down, right = (tiles(side, self.kernel) for side in (height, width))
        tile = (down.length, right.length)
        query = jnp.pad(query, ((0, 0), (0, -height % tile[0]), (0, -width % tile[1]), (0, 0)))
        size = (query.shape[1], query.shape[2])
        query = to_windows(query, tile)
        query = query.reshape(*query.shape[:3], self.heads, channels // self.heads)
        rows = jnp.stack([key_value[:, start : start + down.span] for start in down.starts], axis=1)
        spans = jnp.stack([rows[:, :, :, start : start + right.span] for start in right.starts], axis=2)
        heads = (batch, query.shape[1], down.span * right.span, self.heads, channels // self.heads)
        key, value = (part.reshape(heads) for part in jnp.split(spans, 2, axis=-1))
        bias = self._bias(down, right)
        # An image at a time, so that one bias serves all of them; by products, as in `WindowAttention`.
        with fused_kernel(False):
            attend = jax.vmap(lambda *operands: dot_product_attention(*operands, bias=bias))
            attended = attend(query, key, value).reshape(*query.shape[:3], channels)
        outputs = from_windows(attended, size, tile)
        outputs = outputs[:, :height, :width].reshape(-1, channels)
        return linear(channels, self.dtype, "out", **options)(outputs).reshape(features.shape)

    def _bias(self, down: Tiles, right: Tiles) -> Float[Array, "n A N K"]:
        """The bias of each tile's queries and keys, and what hides those that are not seen."""
        offsets = 2 * self.kernel - 1
        table = self.param("bias_table", truncated_normal, (self.heads, offsets, offsets), jnp.float32)
        # By products with ones and zeros: rows of the table for pairs of rows, then columns.
        with jax.named_scope("bias"):
            rows = jnp.einsum("tqli,aij->tqlaj", down.offsets.astype(table.dtype), table)
            bias = jnp.einsum("tqlaj,upmj->tuaqplm", rows, right.offsets.astype(table.dtype))
        seen = np.einsum("tql,upm->tuqplm", down.offsets.sum(axis=-1), right.offsets.sum(axis=-1))
        hidden = np.where(seen > 0, 0.0, UNSEEN)[:, :, None].astype(bias.dtype)
        queries, keys = down.length * right.length, down.span * right.span
        return (bias + hidden).reshape(-1, self.heads, queries, keys)


def tiles(side: int, kernel: int) -> Tiles:
    """Cuts an axis of a map into tiles for neighbourhoods of an odd `kernel`."""
    seen = min(kernel, side)  # keys of a query
    length = min(kernel, side)
    span = min(side, length + kernel - 1)
    count = -(-side // length)
    starts = [min(max(tile * length - kernel // 2, 0), side - span) for tile in range(count)]
    # Queries beyond the map, which are cropped, see what the last one does.
    query = np.minimum(np.arange(count * length), side - 1).reshape(count, length, 1)
    first = np.clip(query - kernel // 2, 0, side - seen)
    key = np.array(starts)[:, None, None] + np.arange(span)  # [t, 1, l]
    there = (key >= first) & (key < first + seen)  # [t, q, l]
    offset = key - query + kernel - 1
    return Tiles(length, starts, span, np.eye(2 * kernel - 1)[np.clip(offset, 0, 2 * kernel - 2)] * there[..., None])
