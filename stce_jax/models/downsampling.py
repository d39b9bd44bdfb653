"""What halves a map between two stages of a body: Swin's patch merging, and super-token clustering in its place.

Shape letters: B batch, H W feature height and width, h w those of the halved map, ceil(H / 2) and ceil(W / 2), C
channels.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.models.layers import LayerNorm, linear
from stce_jax.models.ops.norms import TORCH_LAYER_NORM_EPSILON
from stce_jax.models.ops.supertoken import cluster_super_tokens


class PatchMerging(nn.Module):
    """Four neighbours -> LayerNorm -> linear layer without bias: [B, H, W, C] -> [B, h, w, features].

    Source: Liu et al. 2021, "Swin Transformer", arXiv 2103.14030, and its published code, whose order of the four
    places (y, x) is (0, 0), (1, 0), (0, 1), (1, 1). An odd side gets a row or column of zeros at the bottom or right,
    as in timm.

    Attributes:
      features: channels of the result, 2 C in Swin.
      dtype: dtype of the computation; parameters are float32.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"]) -> Float[Array, "B h w features"]:
        batch, height, width, channels = inputs.shape
        padded = jnp.pad(inputs, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
        rows, columns = padded.shape[1] // 2, padded.shape[2] // 2
        cells = padded.reshape(batch, rows, 2, columns, 2, channels)  # [B, h, y, w, x, C]
        merged = cells.transpose(0, 1, 3, 4, 2, 5).reshape(-1, 4 * channels)  # [B h w, 4 C], x before y
        normed = LayerNorm(self.dtype, TORCH_LAYER_NORM_EPSILON, name="norm")(merged)
        outputs = linear(self.features, self.dtype, "projection", use_bias=False)(normed)
        return outputs.reshape(batch, rows, columns, self.features)


class SuperTokenDownsample(nn.Module):
    """LayerNorm -> super-token clustering with cells of 2x2 -> linear layer without bias, in place of `PatchMerging`.

    [B, H, W, C] -> [B, h, w, features]. Not in the STCE paper, which clusters in the embedding alone; an experiment.
    The norm comes first, as before SViT's super-token attention: it bounds what the clustering compares. An odd side
    gets zeros at the bottom or right, which count as pixels, see `ops.supertoken.cluster_super_tokens`.

    Attributes:
      features: channels of the result.
      iterations: of the clustering, >= 1.
      dtype: dtype of the norm and the linear layer; the clustering computes in float32 at least; parameters are
        float32.
    """

    features: int
    iterations: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"]) -> Float[Array, "B h w features"]:
        normed = LayerNorm(self.dtype, TORCH_LAYER_NORM_EPSILON, name="norm")(inputs)
        super_tokens, _ = cluster_super_tokens(normed, 2, self.iterations)  # [B, h, w, C]
        batch, rows, columns, channels = super_tokens.shape
        values = super_tokens.astype(self.dtype).reshape(-1, channels)  # [B h w, C]
        outputs = linear(self.features, self.dtype, "projection", use_bias=False)(values)
        return outputs.reshape(batch, rows, columns, self.features)
