"""The patch embedding of the paper's Table 3.

Shape letters: B batch, H W image height and width, N tokens, D model width, h w grid, P side of a patch.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.errors import ConfigError, check_whole
from stce_jax.models.layers import LayerNorm, linear
from stce_jax.models.ops.patches import cut_patches
from stce_jax.models.tokens import Tokens


class PatchEmbed(nn.Module):
    """Table 3: patches of 16x16 pixels -> LayerNorm -> linear -> LayerNorm.

    Attributes:
      width: D.
      patch_size: side of a patch in pixels.
      dtype: dtype of the computation; parameters are float32.

    Raises:
      ConfigError: the image's sides are not multiples of the patch size.
    """

    width: int = 384
    patch_size: int = 16
    dtype: jnp.dtype = jnp.float32

    @staticmethod
    def options_for(width: int, stride: int) -> dict[str, Any]:
        del width
        return {"patch_size": stride}

    def check(self) -> None:
        check_whole("model option patch_size", self.patch_size, 1, 8192)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        patch = self.patch_size
        for side in (height, width):
            if side % patch or side < patch:
                below = side // patch * patch
                fitting = f"{below} or {below + patch}" if below else f"{patch}"
                raise ConfigError(
                    f"an image side of {side} pixels cannot be cut into patches of {patch}; "
                    f"{fitting} would work, as every multiple of {patch} does"
                )
        return height // patch, width // patch

    def feature_places(self) -> tuple[int, float]:
        return self.patch_size, (self.patch_size - 1) / 2  # a patch lies in the middle of its pixels

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"], train: bool | None = None) -> Tokens:
        del train  # nothing here differs between training and inference
        grid = self.grid(*images.shape[1:3])
        patches = LayerNorm(self.dtype, name="patch_norm")(cut_patches(images, self.patch_size))
        values = linear(self.width, self.dtype, "projection")(patches)  # [B, N, D]
        return Tokens(LayerNorm(self.dtype, name="norm")(values), grid=grid)
