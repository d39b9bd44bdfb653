"""Super-token attention: pixels attend to one another by way of a few super tokens.

Source: SViT (Huang et al. 2023, arXiv 2211.11167) and its published code.

Shape letters: B batch, H W feature height and width, h w grid of super tokens, C channels, A heads, E width of a head.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.errors import ConfigError, check_whole
from stce_jax.models.conv_layers import uniform_initializers
from stce_jax.models.layers import linear
from stce_jax.models.ops.attention import attention_weights, dot_product_attention
from stce_jax.models.ops.supertoken import MOST_ITERATIONS, Cell, associate, cell_shape


class SuperTokenAttention(nn.Module):
    """Clusters a map into super tokens, has them attend to one another, and scatters them back to the pixels.

    No norm and no residual connection within. With cells of one pixel it is plain attention of all pixels. Sizes that
    the cells do not divide are padded as `ops.supertoken.associate` says. As in the published code, a pixel at the
    border gives a share of its affinities to neighbours beyond the grid, where it is lost, and affinities carry no
    gradient. Super tokens are computed in float32 at least.

    Sows the attention weights of the super tokens, [B, A, h w, h w], as "attention".

    Attributes:
      heads: number of attention heads; must divide C.
      cell: size of a cell in pixels, an int or (rows, columns).
      iterations: of the clustering, >= 1.
      refine: whether super tokens attend to one another; without, there are no parameters.
      dtype: dtype of the computation; parameters are float32.
    """

    heads: int
    cell: Cell = 8
    iterations: int = 1
    refine: bool = True
    dtype: Any = jnp.float32

    def check(self) -> None:
        """Raises ConfigError if the options cannot work."""
        check_whole("iterations", self.iterations, 1, MOST_ITERATIONS)
        if cell_shape(self.cell) == (1, 1) and not self.refine:
            raise ConfigError("with cells of one pixel there is nothing but the attention; leave refine=True")

    @nn.compact
    def __call__(self, features: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        self.check()
        if features.shape[-1] % self.heads:
            raise ConfigError(f"{features.shape[-1]} channels cannot be divided among {self.heads} heads")
        if cell_shape(self.cell) == (1, 1):
            return self._attend(features)
        association = associate(features, self.cell, self.iterations)
        super_tokens = association.aggregate(features)  # [B, h, w, C]
        if self.refine:
            super_tokens = self._attend(super_tokens.astype(self.dtype))
        return association.scatter(super_tokens).astype(self.dtype)

    def _attend(self, values: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        """Multi-head attention over all places; the rows of "qkv" are, head by head, its query, key and value."""
        batch, height, width, channels = values.shape
        initializers = uniform_initializers(channels)
        rows = values.reshape(-1, channels)  # [B h w, C], see `layers.Attention`
        rows = linear(3 * channels, self.dtype, "qkv", **initializers)(rows)
        heads = rows.reshape(batch, height * width, self.heads, 3, channels // self.heads)
        query, key, value = (part.squeeze(3) for part in jnp.split(heads, 3, axis=3))  # each [B, h w, A, E]
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "attention", attention_weights(query, key))
        outputs = dot_product_attention(query, key, value).reshape(-1, channels)
        return linear(channels, self.dtype, "out", **initializers)(outputs).reshape(values.shape)
