"""SViT, the super-token vision transformer whose clustering the STCE paper takes over, over any embedding.

Source: Huang et al. 2023, "Vision Transformer with Super Token Sampling", arXiv 2211.11167, and its published code.

Shape letters: B batch, H W height and width of an image or of features, C channels, N tokens, h w grid.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.errors import check_whole
from stce_jax.models.attentions.supertoken import SuperTokenAttention
from stce_jax.models.batch_norms import BatchNorm, BatchNormSilu
from stce_jax.models.bodies.stages import DEPTHS, HEADS, WIDTHS, StagedBody, add_branch, as_tokens, share, stage_ranges
from stce_jax.models.conv_layers import (
    ConvFFN,
    ConvMerging,
    DepthwiseResidual,
    LayerScale,
    uniform_initializers,
)
from stce_jax.models.layers import LayerNorm, is_training, linear
from stce_jax.models.ops.supertoken import MOST_ITERATIONS, Cell, cell_shape
from stce_jax.models.remat import remat
from stce_jax.models.tokens import Tokens


class SuperTokenBlock(nn.Module):
    """Conditional positions, super-token attention after LayerNorm, ConvFFN after BatchNorm; each a residual branch.

    Attributes:
      heads, cell, iterations: see `SuperTokenAttention`.
      hidden: channels of the hidden map of the ConvFFN.
      layer_scale: what the last two branches are first multiplied by; 0: no layer scale.
      dtype: dtype of the computation; parameters and statistics are float32.
      axis_name: of BatchNorm's statistics, see `batch_norms.BatchNorm`.
    """

    heads: int
    cell: Cell
    hidden: int
    iterations: int = 1
    layer_scale: float = 0.0
    dtype: jnp.dtype = jnp.float32
    axis_name: Any = None

    @nn.compact
    def __call__(
        self, features: Float[Array, "B H W C"], scales: Float[Array, "2 B 1 1 1"] | None, train: bool
    ) -> Float[Array, "B H W C"]:
        """Computes a map of the same shape; `scales` multiply two branches (stochastic depth), None leaves them."""
        features = DepthwiseResidual(self.dtype, name="position")(features)
        branch = LayerNorm(self.dtype, name="attention_norm")(features)
        branch = SuperTokenAttention(self.heads, self.cell, self.iterations, dtype=self.dtype, name="attention")(branch)
        features = add_branch(features, self._scaled(branch, "attention_scale"), scales, 0)
        normalized = BatchNorm(self.dtype, self.axis_name, name="mlp_norm")(features, train)
        branch = ConvFFN(self.hidden, self.dtype, name="mlp")(normalized)
        return add_branch(features, self._scaled(branch, "mlp_scale"), scales, 1)

    def _scaled(self, branch: jax.Array, name: str) -> jax.Array:
        return LayerScale(self.layer_scale, self.dtype, name=name)(branch) if self.layer_scale else branch


class SViT(StagedBody):
    """Stages of `SuperTokenBlock`, `ConvMerging` between them, images [B, H, W, 3] -> logits [B, classes], float32.

    The published models have the embedding `svit`, a token for 4x4 pixels, which the names svit_s, svit_b and svit_l
    stand for; any other embedding works as well. Images of any size work, for there are no learned positions.

    Options of stages have an entry for each.

    Beside the attributes of `StagedBody`:

    Attributes:
      widths, depths, heads: channels, number of blocks and attention heads of each stage.
      cells: size of each stage's cells in its own pixels, an int or (rows, columns); 1: attention of all pixels.
      association_iterations: of the clustering, >= 1.
      mlp_ratio: hidden channels of a ConvFFN over those of its stage.
      layer_scale: see `SuperTokenBlock`, for each stage, in 0..1.
      head_width: channels of the pooled features.
      axis_name: of BatchNorm's statistics, see `batch_norms.BatchNorm`.
    """

    widths: Sequence[int] = (64, 128, 320, 512)
    depths: Sequence[int] = (3, 5, 9, 3)
    heads: Sequence[int] = (1, 2, 5, 8)
    cells: Sequence[Cell] = (8, 4, 1, 1)
    association_iterations: int = 1
    mlp_ratio: int = 4
    layer_scale: Sequence[float] = (0.0, 0.0, 0.0, 0.0)
    head_width: int = 1024
    axis_name: Any = None

    EMBEDDING: ClassVar[str] = "svit"
    fused_kernels: ClassVar[dict[str, int]] = {}  # query, key and value lie head by head, not side by side
    # The published ones, each with the drop path that it was trained with on ImageNet at 224 pixels.
    SIZES: ClassVar[dict[str, dict[str, Any]]] = {
        "s": {"drop_path": 0.1},
        "b": {
            "widths": (96, 192, 384, 512),
            "depths": (4, 6, 14, 6),
            "heads": (2, 3, 6, 8),
            "layer_scale": (0.0, 0.0, 1e-6, 1e-6),
            "drop_path": 0.4,
        },
        "l": {
            "widths": (96, 192, 448, 640),
            "depths": (4, 7, 19, 8),
            "heads": (2, 3, 7, 10),
            "layer_scale": (0.0, 0.0, 1e-6, 1e-6),
            "drop_path": 0.6,
        },
    }

    def check(self) -> None:
        """Raises ConfigError if the options cannot work."""
        self.check_stages({"widths": WIDTHS, "depths": DEPTHS, "heads": HEADS, "cells": _cell, "layer_scale": share})
        check_whole("model option association_iterations", self.association_iterations, 1, MOST_ITERATIONS)
        check_whole("model option mlp_ratio", self.mlp_ratio, 1, 64)
        check_whole("model option head_width", self.head_width, 1, 16_384)

    def setup(self) -> None:
        self.check()
        block = remat(SuperTokenBlock, self.remat)
        self.blocks = [
            block(
                heads,
                cell,
                self.mlp_ratio * width,
                self.association_iterations,
                layer_scale,
                self.dtype,
                self.axis_name,
            )
            for width, depth, heads, cell, layer_scale in zip(
                self.widths, self.depths, self.heads, self.cells, self.layer_scale, strict=True
            )
            for _ in range(depth)
        ]
        self.merging = [ConvMerging(width, self.dtype, self.axis_name) for width in self.widths[1:]]
        self.projection = linear(self.head_width, self.dtype, **uniform_initializers(self.widths[-1]))
        self.norm = BatchNormSilu(self.dtype, self.axis_name)
        self.head = self.make_head()

    def tokens(self, images: Float[Array, "B H W 3"], train: bool | None = None) -> Tokens:
        """Normalised images -> the last stage's tokens after 1x1 convolution, BatchNorm and SiLU; no leading token."""
        train = is_training(self, train)
        features = self._run_stages(self.embed(images, train), train)
        batch, rows, columns, channels = features.shape
        # As a map for BatchNorm, whose statistics are those of all places.
        projected = self.projection(features.reshape(-1, channels)).reshape(batch, rows, columns, self.head_width)
        return as_tokens(self.norm(projected, train))

    def unshaped_options(self) -> dict[str, Any]:
        """Options that change the logits and show in no parameter's shape."""
        return {name: getattr(self, name) for name in ("heads", "cells", "association_iterations")}

    def _run_stages(self, features: Float[Array, "B H W C"], train: bool) -> Float[Array, "B h w C"]:
        scales = self.branch_scales(features.shape[0], len(self.blocks), train)
        for stage, numbers in enumerate(stage_ranges(self.depths)):
            if stage:
                features = self.merging[stage - 1](features, train=train)
            for index in numbers:
                features = self.blocks[index](features, scales[index], train)
        return features


def _cell(what: str, entry: Any) -> None:
    del what
    cell_shape(entry)
