"""The convolutional token embedding of CvT and of Focal Transformers: patches that overlap.

Shape letters: B batch, H W image height and width, N tokens, D model width, h w grid.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.errors import ConfigError, check_whole
from stce_jax.models.conv_layers import uniform_initializers
from stce_jax.models.tokens import Tokens


class OverlapPatchEmbed(nn.Module):
    """One strided convolution with a bias, whose kernel is larger than its stride.

    Source: Wu et al. 2021, "CvT", arXiv 2103.15808, and its published code: 7x7 pixels, stride 4, padded by 2.

    Attributes:
      width: D.
      patch_size: side of the kernel in pixels.
      patch_stride: pixels between two tokens.
      patch_padding: pixels of zeros around the image.
      dtype: dtype of the computation; parameters are float32.
    """

    width: int = 64
    patch_size: int = 7
    patch_stride: int = 4
    patch_padding: int = 2
    dtype: jnp.dtype = jnp.float32

    def check(self) -> None:
        check_whole("model option patch_size", self.patch_size, 1, 256)
        check_whole("model option patch_stride", self.patch_stride, 1, 256)
        check_whole("model option patch_padding", self.patch_padding, 0, (self.patch_size - 1) // 2)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        rows, columns = (
            (side + 2 * self.patch_padding - self.patch_size) // self.patch_stride + 1 for side in (height, width)
        )
        if min(rows, columns) < 1:
            least = self.patch_size - 2 * self.patch_padding
            raise ConfigError(f"an image of {height}x{width} pixels leaves no token; sides from {least} on would work")
        return rows, columns

    def feature_places(self) -> tuple[int, float]:
        return self.patch_stride, (self.patch_size - 1) / 2 - self.patch_padding

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"], train: bool | None = None) -> Tokens:
        del train  # nothing here differs between training and inference
        self.check()
        features = nn.Conv(
            self.width,
            (self.patch_size, self.patch_size),
            strides=self.patch_stride,
            padding=self.patch_padding,
            dtype=self.dtype,
            name="convolution",
            **uniform_initializers(self.patch_size**2 * images.shape[-1]),
        )(images)
        batch, rows, columns, width = features.shape  # [B, h, w, D]
        return Tokens(features.reshape(batch, rows * columns, width), grid=(rows, columns))
