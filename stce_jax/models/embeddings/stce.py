"""The super-token convolution embedding: the paper's proposal (Table 5).

Shape letters: B batch, H W image or feature height and width, C channels, h w grid of super tokens, N tokens, D model
width.
"""

from collections.abc import Sequence
from typing import Any

import chex
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.errors import check_choice, check_whole
from stce_jax.models.embeddings.stem import check_stem, conv_stack, narrow_stem, stem_places, strided_grid
from stce_jax.models.layers import is_training, linear, sow_scalar
from stce_jax.models.ops.supertoken import (
    BORDERS,
    MOST_ITERATIONS,
    cell_shape,
    cluster_super_tokens,
    grid_shape,
    pool_cells,
)
from stce_jax.models.tokens import Tokens


def entropy(affinity: Float[Array, "B H W 9"]) -> Float[Array, "B"]:
    """How undecided an image's pixels are between the nine super tokens around them: nats, the mean over the pixels.

    ln 9 = 2.197 where all nine affinities are equal, 0 where one has all.
    """
    logarithms = jnp.log(jnp.where(affinity > 0, affinity, 1.0))
    return -(affinity * logarithms).sum(axis=-1).mean(axis=(1, 2))


class SuperTokenConvEmbed(nn.Module):
    """Table 5: a narrow stack of convolution modules, super-token clustering, one linear layer.

    Sows the stack's output [B, H, W, C] as "features" and the last affinities [B, h * cell, w * cell, 9] as "affinity"
    (see `cluster_super_tokens`). In evaluation it leaves the affinities' entropy for the log, "affinity_entropy" [B].

    Attributes:
      width: D.
      stem_widths, stem_strides: channels and stride of each convolution module; empty for none (Table 7).
      cell: cell size of the clustering in pixels of the stack's output, an int or (rows, columns).
      iterations: T of the clustering (Table 8); 0: the cells' means take its place, which Table 8 leaves out.
      border, differentiable: see `cluster_super_tokens`.
      dtype: dtype of convolutions and of the linear layer; the clustering computes in float32 at least.
      axis_name: of BatchNorm's statistics, see `batch_norms.BatchNorm`.
      remat: recompute each module in the backward pass, as a body's option says; `create_model` sets it.
    """

    width: int = 384
    stem_widths: Sequence[int] = (16, 32, 32, 64, 64, 64)
    stem_strides: Sequence[int] = (2, 1, 2, 1, 2, 1)
    cell: int | tuple[int, int] = 2
    iterations: int = 3
    border: str = "zero"
    differentiable: bool = False
    dtype: jnp.dtype = jnp.float32
    axis_name: Any = None
    remat: bool = False

    @staticmethod
    def options_for(width: int, stride: int) -> dict[str, Any]:
        del width
        return narrow_stem(stride)  # cells of 2 halve once more

    def check(self) -> None:
        check_choice("model option border", self.border, BORDERS)
        check_whole("model option iterations", self.iterations, 0, MOST_ITERATIONS)
        cell_shape(self.cell)
        check_stem(self.stem_widths, self.stem_strides)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return grid_shape(*strided_grid(height, width, self.stem_strides), self.cell)

    def feature_places(self) -> tuple[int, float]:
        return stem_places(self.stem_strides)

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"], train: bool | None = None) -> Tokens:
        chex.assert_rank(images, 4)
        self.check()
        features = conv_stack(self, images, train)
        self.sow("intermediates", "features", features)
        if self.iterations:
            super_tokens, affinity = cluster_super_tokens(
                features, self.cell, self.iterations, border=self.border, differentiable=self.differentiable
            )
            self.sow("intermediates", "affinity", affinity)
            if not is_training(self, train) and self.is_mutable_collection("metrics"):
                sow_scalar(self, "metrics", "affinity_entropy", entropy(affinity))
        else:
            super_tokens = pool_cells(features, self.cell)
        batch, rows, columns, channels = super_tokens.shape  # [B, h, w, C]
        values = super_tokens.reshape(batch, rows * columns, channels)  # [B, N, C]
        return Tokens(linear(self.width, self.dtype, "projection")(values), grid=(rows, columns))
