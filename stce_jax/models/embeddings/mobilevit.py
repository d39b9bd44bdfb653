"""The stem and the first two stages of MobileViT, the embedding of the body `mobilevit`.

Source: Mehta and Rastegari 2022, "MobileViT", arXiv 2110.02178; timm's form of its published code.

Shape letters: B batch, H W image or feature height and width, C channels, N tokens, D model width, h w grid.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.errors import ConfigError, check_whole
from stce_jax.models.batch_norms import BatchNorm, BatchNormSilu
from stce_jax.models.conv_layers import DepthwiseConvolution, convolution, pointwise
from stce_jax.models.embeddings.stem import check_stem, halvings, stem_places, strided_grid
from stce_jax.models.layers import is_training
from stce_jax.models.remat import remat
from stce_jax.models.tokens import Tokens

LARGEST_EXPANSION = 64


class InvertedResidual(nn.Module):
    """MobileNetV2's block: 1x1 convolution, 3x3 depthwise, 1x1, each with BatchNorm, the first two with SiLU.

    [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]; a shortcut where the two shapes are the same.

    Attributes:
      features: channels of the result.
      stride: of the depthwise convolution, 1 or 2.
      expansion: hidden channels over C.
      dtype: dtype of the computation; parameters and statistics are float32.
      axis_name: of BatchNorm's statistics, see `batch_norms.BatchNorm`.
    """

    features: int
    stride: int = 1
    expansion: int = 4
    dtype: jnp.dtype = jnp.float32
    axis_name: Any = None

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"], train: bool) -> Float[Array, "B h w features"]:
        channels, options = inputs.shape[-1], (self.dtype, self.axis_name)
        hidden = pointwise(inputs, self.expansion * channels, self.dtype, "expand", use_bias=False)
        hidden = BatchNormSilu(*options, name="expand_norm")(hidden, train)
        hidden = DepthwiseConvolution(self.stride, self.dtype, name="depthwise")(hidden)
        hidden = BatchNormSilu(*options, name="depthwise_norm")(hidden, train)
        outputs = pointwise(hidden, self.features, self.dtype, "project", use_bias=False)
        outputs = BatchNorm(*options, name="project_norm")(outputs, train)
        return inputs + outputs if self.stride == 1 and self.features == channels else outputs


class MobileViTEmbed(nn.Module):
    """A 3x3 convolution, BatchNorm and SiLU, then stages of `InvertedResidual`: a token for 4x4 pixels.

    Attributes:
      width: D.
      stem_widths: channels of the convolution and of each stage; the last is D.
      stem_strides: their strides, 1 or 2 of a stage; a stage has it in its first block.
      stem_blocks: blocks of the last stage; the others have one.
      stem_expansion: hidden channels of a block over its inputs'.
      dtype: dtype of the computation; parameters and BatchNorm's statistics are float32.
      axis_name: of BatchNorm's statistics, see `batch_norms.BatchNorm`.
      remat: recompute each block in the backward pass, as a body's option says; `create_model` sets it.
    """

    width: int = 64
    stem_widths: Sequence[int] = (16, 32, 64)
    stem_strides: Sequence[int] = (2, 1, 2)
    stem_blocks: int = 3
    stem_expansion: int = 4
    dtype: jnp.dtype = jnp.float32
    axis_name: Any = None
    remat: bool = False

    @staticmethod
    def options_for(width: int, stride: int) -> dict[str, Any]:
        """The published stages, below 48 channels those of XXS; as many strides of 2 as there are halvings, or fewer
        pixels in the first."""
        narrow = width < 48
        options: dict[str, Any] = {
            "stem_widths": (min(16, width), min(16 if narrow else 32, width), width),
            "stem_expansion": 2 if narrow else 4,
        }
        if (count := halvings(stride)) is not None:
            options["stem_strides"] = {1: (2, 1, 1), 2: (2, 1, 2)}.get(count, (2 ** (count - 2), 2, 2))
        return options

    def check(self) -> None:
        check_stem(self.stem_widths, self.stem_strides)
        if not self.stem_widths or self.stem_widths[-1] != self.width:
            raise ConfigError(f"stem_widths {self.stem_widths} must end with the model's width, {self.width}")
        for stride in self.stem_strides[1:]:
            check_whole("an entry of stem_strides behind the first", stride, 1, 2)
        check_whole("model option stem_blocks", self.stem_blocks, 1, 1024)
        check_whole("model option stem_expansion", self.stem_expansion, 1, LARGEST_EXPANSION)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return strided_grid(height, width, self.stem_strides)

    def feature_places(self) -> tuple[int, float]:
        return stem_places(self.stem_strides)

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"], train: bool | None = None) -> Tokens:
        self.check()
        train = is_training(self, train)
        kind = remat(InvertedResidual, self.remat)
        first, *widths = self.stem_widths
        features = convolution(first, 3, self.stem_strides[0], self.dtype, bias=False)(images)
        features = BatchNormSilu(self.dtype, self.axis_name, name="norm")(features, train)
        for stage, (width, stride) in enumerate(zip(widths, self.stem_strides[1:], strict=True)):
            for index in range(self.stem_blocks if stage == len(widths) - 1 else 1):
                block = kind(
                    width,
                    1 if index else stride,
                    self.stem_expansion,
                    self.dtype,
                    self.axis_name,
                    name=f"stage_{stage}_block_{index}",
                )
                features = block(features, train)
        batch, rows, columns, channels = features.shape  # [B, h, w, D]
        return Tokens(features.reshape(batch, rows * columns, channels), grid=(rows, columns))
