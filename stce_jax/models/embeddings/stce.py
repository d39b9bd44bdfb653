"""Image embeddings: images [B, H, W, 3] in, tokens [B, N, D] out.

Every embedding is a linen module of its own, usable inside any model: call it as `embedding(images, train=...)`.
`grid(height, width)` says, without computing anything, how its N tokens lie: (rows, columns), row by row.

Shape letters: B batch, H W image height and width, C channels, h w super-token grid, N tokens, D model width.
"""

from collections.abc import Sequence

import chex
import jax.numpy as jnp
from flax import linen as nn

from stce_jax.errors import ConfigError
from stce_jax.models.layers import ConvModule, EarlyConvModule, LayerNorm, convolution, linear
from stce_jax.models.ops.supertoken import cluster_super_tokens, grid_shape, pool_cells


def _check_stem(widths, strides):
    if len(widths) != len(strides):
        raise ConfigError(f"stem_widths {widths} and stem_strides {strides} must have one entry a module each")


def _strided_grid(height, width, strides):
    for stride in strides:
        height, width = -(-height // stride), -(-width // stride)
    return height, width


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

    def grid(self, height, width):
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

    @nn.compact
    def __call__(self, images, *, train):
        del train  # nothing here differs between training and inference
        batch, height, width, channels = images.shape
        rows, columns = self.grid(height, width)
        patch = self.patch_size
        patches = images.reshape(batch, rows, patch, columns, patch, channels)
        patches = patches.transpose(0, 1, 3, 2, 4, 5)  # [B, rows, columns, patch, patch, 3]
        patches = patches.reshape(batch, rows * columns, patch * patch * channels)  # [B, N, 768]
        patches = LayerNorm(self.dtype, name="patch_norm")(patches)
        tokens = linear(self.width, self.dtype, "projection")(patches)
        return LayerNorm(self.dtype, name="norm")(tokens)


class ConvEmbed(nn.Module):
    """Table 4: a stack of convolution modules, the last of them as wide as the model.

    Attributes:
      stem_widths: channels of each module; the last is D.
      stem_strides: stride of each module.
      last_kernel: 3 as printed, 1 for the reading "conv1x1".
      dtype: dtype of the computation; parameters and BatchNorm's statistics are float32.
    """

    stem_widths: Sequence[int] = (96, 192, 384, 384, 384)
    stem_strides: Sequence[int] = (2, 2, 2, 2, 1)
    last_kernel: int = 3
    dtype: jnp.dtype = jnp.float32

    def grid(self, height, width):
        return _strided_grid(height, width, self.stem_strides)

    @nn.compact
    def __call__(self, images, *, train):
        _check_stem(self.stem_widths, self.stem_strides)
        features, last = images, len(self.stem_widths) - 1
        for index, (width, stride) in enumerate(zip(self.stem_widths, self.stem_strides, strict=True)):
            kernel = self.last_kernel if index == last else 3
            module = ConvModule(width, stride, kernel, dtype=self.dtype, name=f"module_{index + 1}")
            features = module(features, train=train)
        batch, _, _, channels = features.shape
        return features.reshape(batch, -1, channels)  # [B, N, D]


class EarlyConvEmbed(nn.Module):
    """EarlyConv's stem (Xiao et al. 2021): modules of stride 2, then a bare 1x1 convolution to the model's width.

    Attributes:
      width: D.
      stem_widths, stem_strides: channels and stride of each module before the 1x1 convolution.
      dtype: dtype of the computation; parameters and BatchNorm's statistics are float32.
    """

    width: int = 384
    stem_widths: Sequence[int] = (48, 96, 192, 384)
    stem_strides: Sequence[int] = (2, 2, 2, 2)
    dtype: jnp.dtype = jnp.float32

    def grid(self, height, width):
        return _strided_grid(height, width, self.stem_strides)

    @nn.compact
    def __call__(self, images, *, train):
        _check_stem(self.stem_widths, self.stem_strides)
        features = images
        for index, (width, stride) in enumerate(zip(self.stem_widths, self.stem_strides, strict=True)):
            module = EarlyConvModule(width, stride, dtype=self.dtype, name=f"module_{index + 1}")
            features = module(features, train=train)
        features = convolution(self.width, 1, 1, self.dtype)(features)
        return features.reshape(features.shape[0], -1, self.width)  # [B, N, D]


class SuperTokenConvEmbed(nn.Module):
    """Table 5, the paper's proposal: a narrow stack of convolution modules, super-token clustering, one linear layer.

    Sows the stack's output [B, H, W, C] as "features" and the last affinities [B, h * cell, w * cell, 9] as "affinity"
    (see `cluster_super_tokens`).
    With `iterations` 0 there is no clustering: the cells' means take its place, which the paper's Table 8 leaves out.

    Attributes:
      width: D.
      stem_widths, stem_strides: channels and stride of each convolution module; empty for none (Table 7).
      cell: cell size of the clustering in pixels of the stack's output, an int or (rows, columns).
      iterations: T of the clustering (Table 8); 0: average pooling in its place.
      border, differentiable: see `cluster_super_tokens`.
      dtype: dtype of convolutions and of the linear layer; the clustering computes in float32 at least.
    """

    width: int = 384
    stem_widths: Sequence[int] = (16, 32, 32, 64, 64, 64)
    stem_strides: Sequence[int] = (2, 1, 2, 1, 2, 1)
    cell: int | tuple[int, int] = 2
    iterations: int = 3
    border: str = "zero"
    differentiable: bool = False
    dtype: jnp.dtype = jnp.float32

    def grid(self, height, width):
        return grid_shape(*_strided_grid(height, width, self.stem_strides), self.cell)

    @nn.compact
    def __call__(self, images, *, train):
        chex.assert_rank(images, 4)
        _check_stem(self.stem_widths, self.stem_strides)
        features = images
        for index, (width, stride) in enumerate(zip(self.stem_widths, self.stem_strides, strict=True)):
            features = ConvModule(width, stride, dtype=self.dtype, name=f"module_{index + 1}")(features, train=train)
        self.sow("intermediates", "features", features)
        if self.iterations:
            tokens, affinity = cluster_super_tokens(
                features, self.cell, self.iterations, border=self.border, differentiable=self.differentiable
            )
            self.sow("intermediates", "affinity", affinity)
        else:
            tokens = pool_cells(features, self.cell)
        batch, rows, columns, channels = tokens.shape
        tokens = tokens.reshape(batch, rows * columns, channels)  # [B, N, C]
        return linear(self.width, self.dtype, "projection")(tokens)
