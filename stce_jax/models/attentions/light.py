"""Attention of a map to fewer keys than it has places.

Source: Guo et al. 2021, "CMT: Convolutional Neural Networks Meet Vision Transformers", arXiv 2107.06263, and the code
that its first author published.

Shape letters: B batch, H W feature height and width, C channels, N places of the map, M keys, h w their grid, A heads,
E width of a head.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.models.batch_norms import BatchNorm
from stce_jax.models.conv_layers import he_normal_fan_out
from stce_jax.models.layers import linear
from stce_jax.models.ops.attention import dot_product_attention
from stce_jax.models.ops.precision import of_rank


class LightAttention(nn.Module):
    """Attention of all places to fewer keys, one for each square of `key_stride` x `key_stride` places (LMHSA).

    A depthwise convolution as large as its stride -> BatchNorm gives the places that keys and values are made of.

    Attributes:
      heads: number of heads; must divide C.
      key_stride: side of a key's square in places of the map, which it divides; 1: no convolution.
      dtype: dtype of the computation; parameters and statistics are float32.
      axis_name: of BatchNorm's statistics, see `batch_norms.BatchNorm`.
    """

    heads: int
    key_stride: int
    dtype: jnp.dtype = jnp.float32
    axis_name: Any = None

    @nn.compact
    def __call__(
        self, features: Float[Array, "B H W C"], bias: Float[Array, "A N M"], train: bool
    ) -> Float[Array, "B H W C"]:
        channels = features.shape[-1]
        context = self._pooled(features, train) if self.key_stride > 1 else features
        query, key, value = (
            self._project(places, name) for places, name in ((features, "query"), (context, "key"), (context, "value"))
        )
        outputs = dot_product_attention(query, key, value, bias=bias[None])  # [B, N, A, E]
        return linear(channels, self.dtype, "out")(outputs.reshape(-1, channels)).reshape(features.shape)

    def _project(self, places: Float[Array, "B h w C"], name: str) -> Float[Array, "B M A E"]:
        batch, rows, columns, channels = places.shape
        projected = linear(channels, self.dtype, name)(places.reshape(-1, channels))  # as rows, see `layers.Attention`
        return projected.reshape(batch, rows * columns, self.heads, channels // self.heads)

    def _pooled(self, features: Float[Array, "B H W C"], train: bool) -> Float[Array, "B h w C"]:
        """The depthwise convolution as a sum of products: no square overlaps another."""
        batch, height, width, channels = features.shape
        side = self.key_stride
        kernel = self.param("kernel", he_normal_fan_out, (side, side, 1, channels), jnp.float32).astype(self.dtype)
        own = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32).astype(self.dtype)
        squares = features.reshape(batch, height // side, side, width // side, side, channels)
        summed = (squares * kernel.reshape(1, 1, side, 1, side, channels)).sum(axis=(2, 4))
        return BatchNorm(self.dtype, self.axis_name, name="norm")(summed + of_rank(4, own), train)
