"""Focal attention: of a window to itself, to what surrounds it, and to the windows around it, pooled.

Source: Yang et al. 2021, "Focal Self-attention for Local-Global Interactions in Vision Transformers", arXiv 2107.00641,
and its published code (version 1), with two levels as in every published config.

Shape letters: B batch, H W feature height and width, C channels, w side of a window, e width of the strips around it,
n windows of a map, N = w w places of a window, S entries of the strips' bias, P = (w + 2 e)^2 places of a window and
around it, f side of the square of pooled windows, K = P + f f keys, A heads, E width of a head.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from stce_jax.models.layers import linear, truncated_normal
from stce_jax.models.ops.attention import dot_product_attention
from stce_jax.models.ops.windows import HIDDEN, from_windows, overlapping_windows, relative_bias, to_windows

NO_KEY = -1e9  # a bias whose exponential is zero beside any other


class WindowPooling(nn.Module):
    """One weighted sum of the places of each window, the weights shared by windows and channels.

    Attributes:
      dtype: dtype of the computation; parameters are float32.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, windows: Float[Array, "B n N C"]) -> Float[Array, "B n C"]:
        places = windows.shape[2]
        kernel = self.param("kernel", nn.initializers.constant(1.0 / places), (places, 1), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (1,), jnp.float32)
        kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
        return jnp.einsum("bnpc,p->bnc", windows.astype(self.dtype), kernel[:, 0]) + bias[0]


class FocalAttention(nn.Module):
    """Multi-head attention of windows, whose keys are three groups under one softmax: [B, H, W, C] -> [B, H, W, C].

    The window's own places; those around it, in strips `expand` wide; and f x f windows around it, itself in their
    middle, each pooled into one. A map that windows do not divide is padded with zeros at the bottom and the right, and
    padded places are keys like others, as in the published code.

    The published code has some places around a window twice, each time with a bias of its own. Here each place is one
    key, whose bias is the logarithm of the sum of their exponentials: the softmax is the same, of 218 keys for 230.

    Attributes:
      heads: number of heads; must divide C.
      window: w.
      focal_window: f, odd.
      expand: width of the strips, 0..w; 0: nothing around the window.
      wrap: the published code takes the places around a window from rolled maps and hides nothing, so that windows at
        a border see the opposite border. False hides what came round.
      dtype: dtype of the computation; parameters are float32.
    """

    heads: int
    window: int
    focal_window: int
    expand: int = 0
    wrap: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        batch, height, width, channels = features.shape
        side = self.window
        padded = jnp.pad(features, ((0, 0), (0, -height % side), (0, -width % side), (0, 0)))
        size = (padded.shape[1], padded.shape[2])
        grid = (size[0] // side, size[1] // side)
        qkv = linear(3 * channels, self.dtype, "qkv")
        query, key_value = jnp.split(qkv(padded.reshape(-1, channels)), (channels,), axis=-1)
        key_value = key_value.reshape(batch, *size, 2 * channels)
        pooled = WindowPooling(self.dtype, name="pool")(to_windows(padded, (side, side)))  # [B, n, C]
        pooled = qkv(pooled.reshape(-1, channels))[:, channels:].reshape(batch, *grid, 2 * channels)
        margin = (self.expand, self.expand)
        wrapped = jnp.pad(key_value, ((0, 0), margin, margin, (0, 0)), mode="wrap")
        groups = [overlapping_windows(wrapped, side, self.expand), neighbourhoods(pooled, self.focal_window)]
        keys = jnp.concatenate(groups, axis=2)  # [B, n, K, 2 C]
        key, value = (
            part.reshape(*part.shape[:3], self.heads, channels // self.heads) for part in jnp.split(keys, 2, axis=-1)
        )
        windows = to_windows(query.reshape(batch, *size, channels), (side, side))  # [B, n, N, C]
        query = windows.reshape(*windows.shape[:3], self.heads, channels // self.heads)
        bias = self._bias(size)
        # An image at a time, so that one bias serves all of them.
        attend = jax.vmap(lambda *operands: dot_product_attention(*operands, bias=bias))
        outputs = attend(query, key, value).reshape(-1, channels)  # [B n N, C]
        outputs = linear(channels, self.dtype, "out")(outputs).reshape(windows.shape)
        return from_windows(outputs, size, (side, side))[:, :height, :width]

    def _bias(self, size: tuple[int, int]) -> Float[Array, "n A N K"]:
        """The bias of each query and key, and what hides keys; n is 1 where all windows have the same."""
        side, reach, own = self.window, self.focal_window, (self.window, self.window)
        places = side**2

        def parameter(name: str, *shape: int) -> Array:
            return self.param(name, truncated_normal, shape, jnp.float32)

        near = relative_bias(parameter("bias_table", (2 * side - 1) ** 2, self.heads), own, own)
        # What hides a window's keys, [n, K], of the map of places and that of windows, in NumPy: constants under jit.
        hidden = [np.zeros((size[0] // side * (size[1] // side), (side + 2 * self.expand) ** 2))]
        if self.expand:
            strips = strip_places(side, self.expand)
            near = jnp.concatenate([near, parameter("surrounding_bias", self.heads, places, len(strips))], axis=-1)
            near = merged_bias(near, np.concatenate([own_places(side, self.expand), strips]), hidden[0].shape[1])
            if not self.wrap:
                hidden[0] = HIDDEN * came_round(size, side, self.expand)
        pooled = pooled_bias(parameter("pooled_bias_table", self.heads, (side + reach - 1) ** 2), side, reach)
        there = np.ones((1, size[0] // side, size[1] // side, 1))
        hidden.append(HIDDEN * (1.0 - neighbourhoods(there, reach, np)[0, :, :, 0]))
        bias = jnp.concatenate([near, pooled], axis=-1)[None]  # [1, A, N, K]
        mask = np.concatenate(hidden, axis=-1)
        return bias + mask[:, None, None, :].astype(bias.dtype) if mask.any() else bias


def own_places(side: int, expand: int) -> Int[np.ndarray, "N"]:
    """Where a window's own places lie among those of it and around it."""
    rows, columns = (axis.reshape(-1) + expand for axis in np.mgrid[:side, :side])
    return rows * (side + 2 * expand) + columns


def strip_places(side: int, expand: int) -> Int[np.ndarray, "S"]:
    """Where the places of strips around a window lie among those of it and around it, S = 4 (w w - (w - expand)^2).

    In the published code's order: of the window moved by `expand` to the bottom right the places that lie in its bottom
    or right strip, row by row; then moved to the bottom left, top right and top left.
    """
    rows, columns = np.mgrid[:side, :side]
    strips = []
    for down in (True, False):
        below = rows >= side - expand if down else rows < expand
        for right in (True, False):
            beside = columns >= side - expand if right else columns < expand
            places = (rows + 2 * expand * down) * (side + 2 * expand) + columns + 2 * expand * right
            strips.append(places[below | beside])
    return np.concatenate(strips)


def merged_bias(
    bias: Float[Array, "A N entries"], places: Int[np.ndarray, "entries"], count: int
) -> Float[Array, "A N P"]:
    """The bias of each of `count` keys, some of which have several entries: exp(bias) is the sum of their exp(bias).

    Args:
      bias: of the entries.
      places: whose each entry is, 0..count - 1. A key without any is none, and gets a bias that hides it.
      count: P.
    """
    # Rows are taken, so that the gradient adds rows; behind those of the entries one that hides.
    entries = jnp.pad(bias.transpose(2, 0, 1), ((0, 1), (0, 0), (0, 0)), constant_values=NO_KEY)  # [entries + 1, A, N]
    of_place = [np.flatnonzero(places == place).tolist() or [len(places)] for place in range(count)]
    merged = entries[np.array([found[0] for found in of_place])]  # [P, A, N]
    for index in range(1, max(map(len, of_place))):
        there = np.array([len(found) > index for found in of_place])
        more = entries[np.array([found[min(index, len(found) - 1)] for found in of_place])]
        merged = jnp.logaddexp(merged, jnp.where(there[:, None, None], more, -jnp.inf))
    return merged.transpose(1, 2, 0)


def neighbourhoods(features: Float[Any, "B h w C"], side: int, xp: Any = jnp) -> Float[Any, "B n F C"]:
    """The F = `side`^2 places around each place of a map, n = h w, and zeros beyond its border; `side` is odd."""
    batch, rows, columns, channels = features.shape
    margin = side // 2
    padded = xp.pad(features, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    shifted = [padded[:, y : y + rows, x : x + columns] for y in range(side) for x in range(side)]
    return xp.stack(shifted, axis=3).reshape(batch, rows * columns, side**2, channels)


def pooled_bias(table: Float[Array, "A offsets"], side: int, reach: int) -> Float[Array, "A N K"]:
    """The bias of a place of a window and a pooled window, from a table of their offsets [A, (w + f - 1)^2].

    The published code subtracts the pooled window's place among the f x f from the query's among the w x w.
    """
    heads, line = table.shape[0], side + reach - 1
    offsets = table.reshape(heads, line, line)
    # By slices, as the gradient of a gather would be a scatter: for each row, then column, of the pooled windows.
    starts = range(reach - 1, -1, -1)
    rows = jnp.stack([offsets[:, start : start + side] for start in starts], axis=2)  # [A, w, f, w + f - 1]
    both = jnp.stack([rows[..., start : start + side] for start in starts], axis=-1)  # [A, w, f, w, f]
    return both.transpose(0, 1, 3, 2, 4).reshape(heads, side**2, reach**2)


def came_round(size: tuple[int, int], side: int, expand: int) -> Float[np.ndarray, "n P"]:
    """1 for what lies in a window's margin beyond the map's border and comes round from the other one, 0 elsewhere."""
    margin = (expand, expand)
    marked = np.pad(np.zeros((1, *size, 1)), ((0, 0), margin, margin, (0, 0)), constant_values=1.0)
    return overlapping_windows(marked, side, expand, np)[0, :, :, 0]
