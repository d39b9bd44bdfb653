"""The stem of CMT, the embedding of the body `cmt`.

Source: Guo et al. 2021, "CMT: Convolutional Neural Networks Meet Vision Transformers", arXiv 2107.06263, and its
published code.

Shape letters: B batch, H W image or feature height and width, C channels, N tokens, D model width, h w grid.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.errors import ConfigError
from stce_jax.models.embeddings.stem import check_stem, conv_stack, halvings, stem_places, strided_grid
from stce_jax.models.layers import linear
from stce_jax.models.ops.patches import cut_patches
from stce_jax.models.tokens import Tokens

# He's normal by the fan out of the convolution, which is 4 times that of the product.
_he_normal_fan_out = nn.initializers.variance_scaling(0.5, "fan_out", "normal")


class HalvingPatches(nn.Module):
    """2x2 convolution of stride 2 with a bias, as a product: [B, H, W, C] -> [B, H // 2, W // 2, features].

    As in PyTorch, an odd last row or column has no part in it. The kernel [4 C, features] is that of the convolution,
    [2, 2, C, features].

    Attributes:
      features: channels of the result.
      dtype: dtype of the computation; parameters are float32.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"]) -> Float[Array, "B h w features"]:
        batch, height, width, channels = inputs.shape
        rows, columns = height // 2, width // 2
        patches = cut_patches(inputs[:, : 2 * rows, : 2 * columns], 2).reshape(-1, 4 * channels)
        outputs = linear(self.features, self.dtype, "projection", kernel_init=_he_normal_fan_out)(patches)
        return outputs.reshape(batch, rows, columns, self.features)


class CMTEmbed(nn.Module):
    """Modules of 3x3 convolution -> GELU -> BatchNorm, the paper's Eq. 1, then a 2x2 convolution of stride 2.

    The LayerNorm that CMT has behind it is the body's.

    Attributes:
      width: D.
      stem_widths: channels of each 3x3 convolution.
      stem_strides: and their strides; the last convolution, of 2x2 pixels, halves once more.
      dtype: dtype of the computation; parameters and BatchNorm's statistics are float32.
      axis_name: of BatchNorm's statistics, see `batch_norms.BatchNorm`.
      remat: recompute each module in the backward pass, as a body's option says; `create_model` sets it.
    """

    width: int = 64
    stem_widths: Sequence[int] = (32, 32, 32)
    stem_strides: Sequence[int] = (2, 1, 1)
    dtype: jnp.dtype = jnp.float32
    axis_name: Any = None
    remat: bool = False

    @staticmethod
    def options_for(width: int, stride: int) -> dict[str, Any]:
        """The published stems: half the width from 64 channels on, 16 below; a module more or less of stride 2."""
        own = width // 2 if width >= 64 else min(width, 16)
        count = halvings(stride)
        strides = (2, 1, 1) if count is None else (2,) * (count - 1) + (1,) * (4 - count)
        return {"stem_widths": (own,) * len(strides), "stem_strides": strides}

    def check(self) -> None:
        check_stem(self.stem_widths, self.stem_strides)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        rows, columns = (side // 2 for side in strided_grid(height, width, self.stem_strides))
        if min(rows, columns) < 1:
            least = stem_places(self.stem_strides)[0] + 1
            raise ConfigError(f"an image of {height}x{width} pixels leaves no token; sides from {least} on would work")
        return rows, columns

    def feature_places(self) -> tuple[int, float]:
        stride, first = stem_places(self.stem_strides)
        return 2 * stride, first + stride / 2  # in the middle of two features

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"], train: bool | None = None) -> Tokens:
        self.check()
        features = conv_stack(self, images, train)
        features = HalvingPatches(self.width, self.dtype, name="halving")(features)
        batch, rows, columns, width = features.shape  # [B, h, w, D]
        return Tokens(features.reshape(batch, rows * columns, width), grid=(rows, columns))
