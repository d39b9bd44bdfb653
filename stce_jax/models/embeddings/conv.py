"""The convolution embedding of the paper's Table 4.

Shape letters: B batch, H W image height and width, C channels, N tokens, D model width, h w grid.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.errors import ConfigError
from stce_jax.models.embeddings.stem import check_stem, conv_stack, halvings, stem_places, strided_grid
from stce_jax.models.tokens import Tokens


class ConvEmbed(nn.Module):
    """Table 4: a stack of convolution modules, the last of them as wide as the model.

    Attributes:
      stem_widths: channels of each module; the last is D.
      stem_strides: stride of each module.
      dtype: dtype of the computation; parameters and BatchNorm's statistics are float32.
      width: D, if it is to be checked against the last module's.
      axis_name: of BatchNorm's statistics, see `batch_norms.BatchNorm`.
      remat: recompute each module in the backward pass, as a body's option says; `create_model` sets it.
    """

    stem_widths: Sequence[int] = (96, 192, 384, 384, 384)
    stem_strides: Sequence[int] = (2, 2, 2, 2, 1)
    dtype: jnp.dtype = jnp.float32
    width: int | None = None
    axis_name: Any = None
    remat: bool = False

    LAST_KERNEL: ClassVar[int] = 3  # as printed

    @staticmethod
    def options_for(width: int, stride: int) -> dict[str, Any]:
        """Table 4's proportions for 16 pixels between two tokens; for fewer, its last modules."""
        widths, count = (width // 4, width // 2, width, width, width), halvings(stride)
        if count is None or count > 4:
            return {"stem_widths": widths}
        return {"stem_widths": widths[4 - count :], "stem_strides": (2,) * count + (1,)}

    def check(self) -> None:
        check_stem(self.stem_widths, self.stem_strides)
        if not self.stem_widths or self.stem_widths[-1] != (self.width or self.stem_widths[-1]):
            raise ConfigError(f"stem_widths {self.stem_widths} must end with the model's width, {self.width}")

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return strided_grid(height, width, self.stem_strides)

    def feature_places(self) -> tuple[int, float]:
        return stem_places(self.stem_strides)

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"], train: bool | None = None) -> Tokens:
        self.check()
        features = conv_stack(self, images, train, last={"kernel": self.LAST_KERNEL})
        batch, rows, columns, channels = features.shape  # [B, h, w, D]
        return Tokens(features.reshape(batch, rows * columns, channels), grid=(rows, columns))


class Conv1x1Embed(ConvEmbed):
    """Table 4 in the other reading: the last convolution is 1x1."""

    LAST_KERNEL: ClassVar[int] = 1
