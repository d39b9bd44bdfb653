"""EarlyConv's own stem (Xiao et al. 2021), beside which the paper's Table 4 is read.

Shape letters: B batch, H W image height and width, N tokens, D model width, h w grid.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.models.conv_layers import EarlyConvModule, convolution
from stce_jax.models.embeddings.stem import check_stem, conv_stack, halvings, stem_places, strided_grid
from stce_jax.models.tokens import Tokens


class EarlyConvEmbed(nn.Module):
    """Modules of stride 2, then a bare 1x1 convolution to the model's width.

    Attributes:
      width: D.
      stem_widths, stem_strides: channels and stride of each module before the 1x1 convolution.
      dtype: dtype of the computation; parameters and BatchNorm's statistics are float32.
      axis_name: of BatchNorm's statistics, see `batch_norms.BatchNorm`.
      remat: recompute each module in the backward pass, as a body's option says; `create_model` sets it.
    """

    width: int = 384
    stem_widths: Sequence[int] = (48, 96, 192, 384)
    stem_strides: Sequence[int] = (2, 2, 2, 2)
    dtype: jnp.dtype = jnp.float32
    axis_name: Any = None
    remat: bool = False

    @staticmethod
    def options_for(width: int, stride: int) -> dict[str, Any]:
        """The published proportions for 16 pixels between two tokens; for fewer, the last modules."""
        widths, count = (width // 8, width // 4, width // 2, width), halvings(stride)
        if count is None or count > 4:
            return {"stem_widths": widths}
        return {"stem_widths": widths[4 - count :], "stem_strides": (2,) * count}

    def check(self) -> None:
        check_stem(self.stem_widths, self.stem_strides)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return strided_grid(height, width, self.stem_strides)

    def feature_places(self) -> tuple[int, float]:
        return stem_places(self.stem_strides)

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"], train: bool | None = None) -> Tokens:
        self.check()
        features = conv_stack(self, images, train, kind=EarlyConvModule)
        features = convolution(self.width, 1, 1, self.dtype)(features)
        batch, rows, columns, width = features.shape  # [B, h, w, D]
        return Tokens(features.reshape(batch, rows * columns, width), grid=(rows, columns))
