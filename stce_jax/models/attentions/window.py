"""Attention within the windows of a map, shifted or not.

Source: Liu et al. 2021, "Swin Transformer", arXiv 2103.14030, its published code, and timm's for sizes that windows do
not divide.

Shape letters: B batch, H W feature height and width, C channels, n windows of a map, N places of a window, A heads, E
width of a head.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.models.layers import linear, truncated_normal
from stce_jax.models.ops.attention import dot_product_attention, fused_kernel
from stce_jax.models.ops.windows import Pair, from_windows, relative_bias, shift_mask, to_windows


class WindowAttention(nn.Module):
    """Multi-head attention within windows, with a learned bias for each offset: [B, H, W, C] -> [B, H, W, C].

    A map that the windows do not divide is padded with zeros at the bottom and the right, after it was rolled. Padded
    places are keys like others, as in timm. Where a side is no longer than the window's, the window is as long as the
    side, and not shifted along it.

    Attributes:
      heads: number of heads; must divide C.
      window: (rows, columns) of a window; the table of biases is for it.
      shift: (rows, columns) by which the windows are shifted to the bottom right; (0, 0): not.
      dtype: dtype of the computation; parameters are float32.
      table_init: initialisation of the table of biases.
      initializers: function of a linear layer's inputs -> its {"kernel_init", "bias_init"}; None: those of `linear`.
    """

    heads: int
    window: Pair
    shift: Pair = (0, 0)
    dtype: jnp.dtype = jnp.float32
    table_init: Any = truncated_normal
    initializers: Callable[[int], dict[str, Any]] | None = None

    @nn.compact
    def __call__(self, features: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        height, width = features.shape[1:3]
        (rows, down), (columns, right) = (
            (side, 0) if side <= wide else (wide, moved)
            for side, wide, moved in zip((height, width), self.window, self.shift, strict=True)
        )
        window, shift = (rows, columns), (down, right)
        rolled = jnp.roll(features, (-down, -right), axis=(1, 2)) if any(shift) else features
        padded = jnp.pad(rolled, ((0, 0), (0, -height % rows), (0, -width % columns), (0, 0)))
        size = (padded.shape[1], padded.shape[2])
        windows = to_windows(padded, window)  # [B, n, N, C]
        attended = self._attend(windows, window, shift_mask(size, window, shift) if any(shift) else None)
        merged = from_windows(attended, size, window)[:, :height, :width]
        return jnp.roll(merged, shift, axis=(1, 2)) if any(shift) else merged

    def _attend(
        self, windows: Float[Array, "B n N C"], window: Pair, mask: Float[np.ndarray, "n N N"] | None
    ) -> Float[Array, "B n N C"]:
        batch, count, places, channels = windows.shape
        offsets = (2 * self.window[0] - 1) * (2 * self.window[1] - 1)
        table = self.param("bias_table", self.table_init, (offsets, self.heads), jnp.float32)
        bias = relative_bias(table, self.window, window)[None]  # [1, A, N, N]
        if mask is not None:
            bias = bias + mask[:, None]  # [n, A, N, N]
        options = self.initializers(channels) if self.initializers else {}
        rows = linear(3 * channels, self.dtype, "qkv", **options)(windows.reshape(-1, channels))  # [B n N, 3 C]
        heads = (batch, count, places, self.heads, channels // self.heads)  # [B, n, N, A, E]
        query, key, value = (part.reshape(heads) for part in jnp.split(rows, 3, axis=-1))
        # An image at a time, so that one bias serves all of them. By products on every device: cuDNN's kernel would
        # need a copy of the bias for each image, and has no gradient of a shared one under `jax.vmap`.
        with fused_kernel(False):
            attend = jax.vmap(lambda *operands: dot_product_attention(*operands, bias=bias))
            outputs = attend(query, key, value).reshape(-1, channels)  # [B n N, C]
        return linear(channels, self.dtype, "out", **options)(outputs).reshape(windows.shape)
