"""Focal Transformer (version 1): windows that also attend to what surrounds them, and to pooled windows farther away.

Source: Yang et al. 2021, arXiv 2107.00641, and its published code.

Shape letters: B batch, H W image height and width or of features, C channels, h w those of a smaller map.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.errors import check_whole
from stce_jax.models.attentions.focal import FocalAttention
from stce_jax.models.bodies.stages import (
    DEPTHS,
    HEADS,
    WIDTHS,
    StagedBody,
    add_branch,
    as_tokens,
    odd,
    refuse_small,
    share,
    whole,
)
from stce_jax.models.bodies.tables import fit_tables
from stce_jax.models.conv_layers import LayerScale, NormedHalving
from stce_jax.models.layers import MLP, LayerNorm, is_training
from stce_jax.models.ops.norms import TORCH_LAYER_NORM_EPSILON
from stce_jax.models.remat import remat
from stce_jax.models.tokens import Tokens

LARGEST_WINDOW = 64  # on a side


class FocalBlock(nn.Module):
    """Focal attention and MLP, each a residual branch after LayerNorm.

    Attributes:
      heads, window, focal_window, expand, wrap: see `FocalAttention`.
      hidden: hidden width of the MLP.
      layer_scale: what the branches are first multiplied by; 0: no layer scale.
      dtype: dtype of the computation; parameters are float32.
    """

    heads: int
    window: int
    focal_window: int
    expand: int
    wrap: bool
    hidden: int
    layer_scale: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, features: Float[Array, "B H W C"], scales: Float[Array, "2 B 1 1 1"] | None
    ) -> Float[Array, "B H W C"]:
        """Computes a map of the same shape; `scales` multiply the branches (stochastic depth), None leaves them."""
        batch, rows, columns, channels = features.shape
        branch = LayerNorm(self.dtype, TORCH_LAYER_NORM_EPSILON, name="attention_norm")(features)
        attention = FocalAttention(
            self.heads, self.window, self.focal_window, self.expand, self.wrap, self.dtype, name="attention"
        )
        features = add_branch(features, self._scaled(attention(branch), "attention_scale"), scales, 0)
        branch = LayerNorm(self.dtype, TORCH_LAYER_NORM_EPSILON, name="mlp_norm")(features)
        tokens = branch.reshape(batch, rows * columns, channels)
        branch = MLP(self.hidden, dtype=self.dtype, name="mlp")(tokens, False).reshape(branch.shape)  # has no dropout
        return add_branch(features, self._scaled(branch, "mlp_scale"), scales, 1)

    def _scaled(self, branch: jax.Array, name: str) -> jax.Array:
        return LayerScale(self.layer_scale, self.dtype, name=name)(branch) if self.layer_scale else branch


class Focal(StagedBody):
    """Stages of `FocalBlock`, a 2x2 convolution between them, images [B, H, W, 3] -> logits [B, classes], float32.

    Images of any size work that leaves the last stage a place: windows pad maps that they do not divide. As in the
    published code, a stage whose map at `image_size` is no larger than the window on one of its sides has windows as
    long as that side and nothing around them. So some parameters depend on `image_size`; `fit_weights` brings those of
    another size to it.

    Options of stages have an entry for each.

    Beside the attributes of `StagedBody`:

    Attributes:
      widths, depths, heads: channels, number of blocks and attention heads of each stage.
      window: side of the windows.
      focal_windows: side of the square of pooled windows that a window attends to, odd, for each stage.
      expands: width of the strips around a window that it attends to, 0..window, for each stage.
      wrap: see `FocalAttention`; False is no option of the published code.
      mlp_ratio: hidden width of an MLP over the stage's.
      layer_scale: see `FocalBlock`, for each stage, in 0..1.
      halving_kernel: side of the kernel of the convolution between stages, 2 or 3.
    """

    widths: Sequence[int] = (96, 192, 384, 768)
    depths: Sequence[int] = (2, 2, 6, 2)
    heads: Sequence[int] = (3, 6, 12, 24)
    window: int = 7
    focal_windows: Sequence[int] = (7, 5, 3, 1)
    expands: Sequence[int] = (3, 3, 3, 3)
    wrap: bool = True
    mlp_ratio: int = 4
    layer_scale: Sequence[float] = (0.0, 0.0, 0.0, 0.0)
    halving_kernel: int = 2

    EMBEDDING: ClassVar[str] = "linear_patch"
    SIZES: ClassVar[dict[str, dict[str, Any]]] = {"t": {"drop_path": 0.2}}

    def check(self) -> None:
        """Raises ConfigError if the options cannot work."""
        check_whole("model option window", self.window, 1, LARGEST_WINDOW)
        checks = {"widths": WIDTHS, "depths": DEPTHS, "heads": HEADS, "focal_windows": odd(LARGEST_WINDOW)}
        self.check_stages({**checks, "expands": whole(0, self.window), "layer_scale": share})
        check_whole("model option mlp_ratio", self.mlp_ratio, 1, 64)
        check_whole("model option halving_kernel", self.halving_kernel, 2, 3)

    def setup(self) -> None:
        self.check()
        block = remat(FocalBlock, self.remat)
        blocks = []
        for stage, sides in enumerate(self.stage_grids(*self.image_size)):
            small = min(sides) <= self.window
            blocks += [
                block(
                    self.heads[stage],
                    min(sides) if small else self.window,
                    self.focal_windows[stage],
                    0 if small else self.expands[stage],
                    self.wrap,
                    self.mlp_ratio * self.widths[stage],
                    self.layer_scale[stage],
                    self.dtype,
                )
                for _ in range(self.depths[stage])
            ]
        self.blocks = blocks
        self.embedding_norm = LayerNorm(self.dtype, TORCH_LAYER_NORM_EPSILON)
        self.halving = [NormedHalving(width, self.halving_kernel, dtype=self.dtype) for width in self.widths[1:]]
        self.norm = LayerNorm(self.dtype, TORCH_LAYER_NORM_EPSILON)
        self.head = self.make_head()

    def tokens(self, images: Float[Array, "B H W 3"], train: bool | None = None) -> Tokens:
        """Normalised images -> the last stage's tokens after LayerNorm; no leading token."""
        train = is_training(self, train)
        features = self.embedding_norm(self.embed(images, train))
        features = self.run_stages(features, self.depths, self.halving, train)
        return as_tokens(self.norm(features))

    def stage_grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """How each stage's tokens lie; ConfigError if the last has none."""
        grids = super().stage_grids
        refuse_small(self, height, width, lambda rows, columns: min(grids(rows, columns)[-1]) > 0)
        return grids(height, width)

    def downsampled(self, rows: int, columns: int) -> tuple[int, int]:
        """Half, rounded up by a padded kernel of 3, down by one of 2."""
        extra = self.halving_kernel - 2
        return (rows + extra) // 2, (columns + extra) // 2

    def unshaped_options(self) -> dict[str, Any]:
        """Options that change the logits and show in no parameter's shape."""
        return {"wrap": self.wrap}

    def fit_weights(
        self, found: dict[str, Any], expected: dict[str, Any], old_grid: tuple[int, int] | None
    ) -> tuple[dict[str, Any], str]:
        """Brings tables of another window, which small images have, to this one's by bicubic interpolation.

        Biases of surroundings are not interpolated: those of another shape, or that are missing, start at zero.
        """
        del old_grid
        return fit_tables(found, expected)


class FocalConv(Focal):
    """`Focal` with convolutions that overlap, the published code's "conv embed": 7x7 of stride 4, then 3x3 of 2."""

    halving_kernel: int = 3

    EMBEDDING: ClassVar[str] = "overlap_patch"
