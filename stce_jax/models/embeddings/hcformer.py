"""An embedding that down-samples by HCFormer's clustering attention: our extension.

Shape letters: B batch, H W image or feature height and width, C channels, h w grid, N tokens, D model width.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.errors import check_whole
from stce_jax.models.attentions.clustering import ClusteringAttention
from stce_jax.models.conv_layers import ConvModule
from stce_jax.models.embeddings.stem import (
    LARGEST_WIDTH,
    check_stem,
    conv_stack,
    narrow_stem,
    stem_places,
    strided_grid,
)
from stce_jax.models.layers import linear
from stce_jax.models.ops.clustering import cluster_means
from stce_jax.models.tokens import Tokens


class HCFormerEmbed(nn.Module):
    """The stack of the STCE embedding, whose output F is halved by clusters: tokens are the means of F over clusters.

    A convolution module of stride 2 gives a coarse map; `ClusteringAttention` says how much each pixel p of F belongs
    to each place k of it around, A_pk; a token is sum_p A_pk F_p / sum_p A_pk, then a linear layer. The averages are
    our extension of HCFormer (Suzuki 2022, arXiv 2205.09949): its own coarse features are those of a backbone, and its
    code uses A to carry predictions back up alone. Gradients reach the coarse map through A.

    Sows F [B, H, W, C] as "features", and A [B, 2 h, 2 w, 9] as "cluster_affinity".

    Attributes:
      width: D.
      stem_widths, stem_strides: channels and stride of each convolution module before the last halving.
      assignment_width: in which pixels and places are compared.
      dtype: dtype of convolutions and linear layers; assignments and means are computed in float32 at least.
      axis_name: of BatchNorm's statistics, see `batch_norms.BatchNorm`.
      remat: recompute each module in the backward pass, as a body's option says; `create_model` sets it.
    """

    width: int = 384
    stem_widths: Sequence[int] = (16, 32, 32, 64, 64, 64)
    stem_strides: Sequence[int] = (2, 1, 2, 1, 2, 1)
    assignment_width: int = 128
    dtype: jnp.dtype = jnp.float32
    axis_name: Any = None
    remat: bool = False

    @staticmethod
    def options_for(width: int, stride: int) -> dict[str, Any]:
        del width
        return narrow_stem(stride)

    def check(self) -> None:
        check_stem(self.stem_widths, self.stem_strides)
        check_whole("model option assignment_width", self.assignment_width, 1, LARGEST_WIDTH)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return strided_grid(height, width, (*self.stem_strides, 2))

    def feature_places(self) -> tuple[int, float]:
        return stem_places((*self.stem_strides, 2))

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"], train: bool | None = None) -> Tokens:
        self.check()
        features = conv_stack(self, images, train)
        channels = features.shape[-1]
        halving = ConvModule(channels, 2, dtype=self.dtype, axis_name=self.axis_name, name="coarse")
        coarse = halving(features, train=train)  # [B, h, w, C]
        assignment = ClusteringAttention(self.assignment_width, dtype=self.dtype, name="clustering")(features, coarse)
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "features", features)
            self.sow("intermediates", "cluster_affinity", assignment.affinity())
        means = cluster_means(assignment, features)
        batch, rows, columns, _ = means.shape
        values = means.reshape(batch, rows * columns, channels)  # [B, N, C]
        return Tokens(linear(self.width, self.dtype, "projection")(values), grid=(rows, columns))
