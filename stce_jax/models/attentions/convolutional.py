"""Attention whose queries, keys and values are convolutions of a map.

Source: Wu et al. 2021, "CvT: Introducing Convolutions to Vision Transformers", arXiv 2103.15808, and its published
code.

Shape letters: B batch, N tokens, L leading ones, H W feature height and width, h w those of a smaller map, C channels,
M keys, A heads, E width of a head.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.models.batch_norms import BatchNorm
from stce_jax.models.conv_layers import uniform_initializers
from stce_jax.models.layers import linear
from stce_jax.models.ops.attention import attention_weights, dot_product_attention
from stce_jax.models.ops.convolution import halving_mean
from stce_jax.models.ops.depthwise import depthwise_convolution
from stce_jax.models.tokens import Tokens

PROJECTIONS = ("conv", "average")
SCALES = ("width", "head")


class ConvProjection(nn.Module):
    """Depthwise 3x3 convolution without bias -> BatchNorm, no activation: [B, H, W, C] -> [B, h, w, C].

    Attributes:
      halved: whether the convolution has stride 2: h = ceil(H / 2), w = ceil(W / 2).
      dtype: dtype of the computation; parameters and statistics are float32.
      axis_name: of BatchNorm's statistics, see `batch_norms.BatchNorm`.
    """

    halved: bool
    dtype: jnp.dtype = jnp.float32
    axis_name: Any = None

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"], train: bool) -> Float[Array, "B h w C"]:
        channels = inputs.shape[-1]
        kernel = self.param("kernel", uniform_initializers(9)["kernel_init"], (3, 3, 1, channels), jnp.float32)
        stride = 2 if self.halved else 1
        outputs = depthwise_convolution(inputs.astype(self.dtype), kernel.astype(self.dtype), stride)
        return BatchNorm(self.dtype, self.axis_name, name="norm")(outputs, train)


class ConvAttention(nn.Module):
    """Multi-head attention of a map's tokens, with a quarter as many keys and values: CvT's.

    Leading tokens skip the convolutions: they stand in front of the maps of queries, keys and values. If there are any,
    the weights are sown as "attention", [B, A, N, M].

    Attributes:
      heads: number of heads; must divide C.
      projection: "conv": `ConvProjection`; "average": keys and values are means of 3x3 places, queries the map itself.
      scale: logits are divided by the square root of the whole "width" C, as CvT's code does, or of a "head"'s E.
      dtype: dtype of the computation; parameters and statistics are float32.
      axis_name: of BatchNorm's statistics, see `batch_norms.BatchNorm`.
    """

    heads: int
    projection: str = "conv"
    scale: str = "width"
    dtype: jnp.dtype = jnp.float32
    axis_name: Any = None

    @nn.compact
    def __call__(self, tokens: Tokens, train: bool) -> Float[Array, "B N C"]:
        """Computes the branch that a block adds; the image tokens must lie in a grid."""
        batch, _, channels = tokens.shape
        assert tokens.grid is not None, "the convolutions need a map; give tokens with their grid"
        leading = tokens.values[:, : tokens.leading]
        image = tokens.image_values().reshape(batch, *tokens.grid, channels)

        def heads(name: str, halved: bool) -> Float[Array, "B n A E"]:
            features = self._projected(name, image, halved, train)
            values = features.reshape(batch, features.shape[1] * features.shape[2], channels)
            values = jnp.concatenate([leading, values], axis=1) if tokens.leading else values
            rows = linear(channels, self.dtype, name)(values.reshape(-1, channels))  # [B n, C]: see `layers.Attention`
            return rows.reshape(batch, values.shape[1], self.heads, channels // self.heads)

        query, key, value = heads("query", False), heads("key", True), heads("value", True)
        if self.scale == "width":  # what follows divides by sqrt(E), and C = A E
            query = query * self.heads**-0.5
        if tokens.leading and self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "attention", attention_weights(query, key))
        outputs = dot_product_attention(query, key, value).reshape(-1, channels)  # [B N, C]
        return linear(channels, self.dtype, "out")(outputs).reshape(tokens.shape)

    def _projected(self, name: str, image: jax.Array, halved: bool, train: bool) -> Float[Array, "B h w C"]:
        if self.projection == "conv":
            return ConvProjection(halved, self.dtype, self.axis_name, name=f"{name}_projection")(image, train)
        return halving_mean(image) if halved else image
