"""The stem of SViT, the embedding of the body `svit`.

Source: Huang et al. 2023, arXiv 2211.11167, and its published code.

Shape letters: B batch, H W image height and width, N tokens, D model width, h w grid.
"""

from collections.abc import Sequence
from typing import Any

from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.models.batch_norms import GeluBatchNorm
from stce_jax.models.conv_layers import convolution, uniform_initializers
from stce_jax.models.embeddings.conv import ConvEmbed
from stce_jax.models.remat import remat
from stce_jax.models.tokens import Tokens


class SViTEmbed(ConvEmbed):
    """Four modules of 3x3 convolution -> GELU -> BatchNorm, a token for 4x4 pixels.

    Options and fields are those of `ConvEmbed`; the published code initialises convolutions uniformly.
    """

    stem_widths: Sequence[int] = (32, 32, 64, 64)
    stem_strides: Sequence[int] = (2, 1, 2, 1)

    @staticmethod
    def options_for(width: int, stride: int) -> dict[str, Any]:
        del stride  # 4 pixels between two tokens, whatever the body
        return {"stem_widths": (max(width // 2, 1), max(width // 2, 1), width, width)}

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"], train: bool | None = None) -> Tokens:
        self.check()
        features = images
        kind = remat(GeluBatchNorm, self.remat)
        for index, (width, stride) in enumerate(zip(self.stem_widths, self.stem_strides, strict=True), start=1):
            initializers = uniform_initializers(9 * features.shape[-1])
            module = convolution(width, 3, stride, self.dtype, name=f"convolution_{index}", **initializers)
            features = kind(self.dtype, self.axis_name, name=f"norm_{index}")(module(features), train=train)
        batch, rows, columns, channels = features.shape  # [B, h, w, D]
        return Tokens(features.reshape(batch, rows * columns, channels), grid=(rows, columns))
