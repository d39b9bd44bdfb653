"""Focal attention: of a window to itself, to what surrounds it, and to the windows around it, pooled.

Source: Yang et al. 2021, "Focal Self-attention for Local-Global Interactions in Vision Transformers", arXiv 2107.00641,
and its published code (version 1), with two levels as in every published config.

Shape letters: B batch, H W feature height and width, C channels, w side of a window, n windows of a map, N = w w places
of a window, S places around it, f side of the square of pooled windows, K = N + S + f f keys, A heads, E width of a
head.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.models.layers import linear, truncated_normal
from stce_jax.models.ops.attention import dot_product_attention
from stce_jax.models.ops.windows import HIDDEN, from_windows, relative_bias, to_windows


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

    The window's own places; those around it, in strips `expand` wide, the corners several times; and f x f windows
    around it, itself in their middle, each pooled into one. A map that windows do not divide is padded with zeros at
    the bottom and the right, and padded places are keys like others, as in the published code.

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
        groups = [
            to_windows(key_value, (side, side)),
            *([surroundings(key_value, side, self.expand)] if self.expand else []),
            neighbourhoods(pooled, self.focal_window),
        ]
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

        biases = [relative_bias(parameter("bias_table", (2 * side - 1) ** 2, self.heads), own, own)]
        # What hides a window's keys, [n, K], of the map of places and that of windows, in NumPy: constants under jit.
        hidden = [np.zeros((size[0] // side * (size[1] // side), places))]
        if self.expand:
            count = 4 * (places - (side - self.expand) ** 2)
            biases.append(parameter("surrounding_bias", self.heads, places, count))
            hidden.append(np.zeros((len(hidden[0]), count)))
            if not self.wrap:
                hidden[-1] += HIDDEN * came_round(size, side, self.expand)
        biases.append(pooled_bias(parameter("pooled_bias_table", self.heads, (side + reach - 1) ** 2), side, reach))
        there = np.ones((1, size[0] // side, size[1] // side, 1))
        hidden.append(HIDDEN * (1.0 - neighbourhoods(there, reach, np)[0, :, :, 0]))
        bias = jnp.concatenate(biases, axis=-1)[None]  # [1, A, N, K]
        mask = np.concatenate(hidden, axis=-1)
        return bias + mask[:, None, None, :].astype(bias.dtype) if mask.any() else bias


def surroundings(features: Float[Any, "B H W C"], side: int, expand: int, xp: Any = jnp) -> Float[Any, "B n S C"]:
    """The places in strips around each window, of maps rolled towards the four corners: [B, H, W, C] -> [B, n, S, C].

    S = 4 (w w - (w - expand)^2), in the published code's order: of the window at the map rolled to the top left the
    places that lie in its bottom or right strip, row by row; then to the top right, bottom left and bottom right.
    Rolls wrap round the map. `xp` is the library of the arrays, jax.numpy or NumPy.
    """
    parts = []
    for down, right in ((-expand, -expand), (-expand, expand), (expand, -expand), (expand, expand)):
        windows = to_windows(xp.roll(features, (down, right), axis=(1, 2)), (side, side))
        batch, count, _, channels = windows.shape
        cells = windows.reshape(batch, count, side, side, channels)
        columns = slice(side - expand, None) if right < 0 else slice(None, expand)
        # Whole rows of the strip below or above, and of the other rows the strip's columns: both in order.
        strip = cells[:, :, side - expand :] if down < 0 else cells[:, :, :expand]
        others = cells[:, :, : side - expand, columns] if down < 0 else cells[:, :, expand:, columns]
        pair = (others, strip) if down < 0 else (strip, others)
        parts += [part.reshape(batch, count, part.shape[2] * part.shape[3], channels) for part in pair]
    return xp.concatenate(parts, axis=2)


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


def came_round(size: tuple[int, int], side: int, expand: int) -> Float[np.ndarray, "n S"]:
    """1 for what `surroundings` takes from beyond the map's border, 0 elsewhere."""
    marked = np.pad(np.zeros((1, *size, 1)), ((0, 0), (side, side), (side, side), (0, 0)), constant_values=1.0)
    around = surroundings(marked, side, expand, np)  # of a map with one window more on each side
    rows, columns = size[0] // side, size[1] // side
    inner = around.reshape(rows + 2, columns + 2, -1)[1:-1, 1:-1]
    return inner.reshape(rows * columns, -1)
