"""The stem of DAT++, the embedding of the body `datpp`.

Source: Xia et al. 2023, "DAT++", arXiv 2309.01430, and its published code.

Shape letters: B batch, H W image height and width, N tokens, D model width, h w grid.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.models.conv_layers import convolution, uniform_initializers
from stce_jax.models.layers import LayerNorm
from stce_jax.models.ops.activations import gelu
from stce_jax.models.ops.norms import TORCH_LAYER_NORM_EPSILON
from stce_jax.models.tokens import Tokens


class DATPlusEmbed(nn.Module):
    """Two 3x3 convolutions of stride 2, the first to half of the width; LayerNorm and GELU between them.

    The published code's last LayerNorm is the body's.

    Attributes:
      width: D.
      dtype: dtype of the computation; parameters are float32.
    """

    width: int = 64
    dtype: jnp.dtype = jnp.float32

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return -(-height // 4), -(-width // 4)

    def feature_places(self) -> tuple[int, float]:
        return 4, 0.0  # padded by a pixel each time, the middle of the first kernel is the first pixel

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"], train: bool | None = None) -> Tokens:
        del train  # nothing here differs between training and inference
        features = self._convolution(max(self.width // 2, 1), images, "convolution_1")
        features = gelu(LayerNorm(self.dtype, TORCH_LAYER_NORM_EPSILON, name="norm")(features))
        features = self._convolution(self.width, features, "convolution_2")
        batch, rows, columns, width = features.shape  # [B, h, w, D]
        return Tokens(features.reshape(batch, rows * columns, width), grid=(rows, columns))

    def _convolution(self, features: int, inputs: Array, name: str) -> Array:
        initializers = uniform_initializers(9 * inputs.shape[-1])
        return convolution(features, 3, 2, self.dtype, name=name, **initializers)(inputs)
