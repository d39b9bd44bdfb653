"""Swin, the hierarchical transformer of shifted windows, over any embedding.

Source: Liu et al. 2021, "Swin Transformer", arXiv 2103.14030, and its published code; timm's for sizes of images that
the published code refuses.

Shape letters: B batch, H W height and width of an image or of features, C channels, h w grid.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.errors import check_choice, check_whole
from stce_jax.models.attentions.window import WindowAttention
from stce_jax.models.bodies.stages import DEPTHS, HEADS, WIDTHS, StagedBody, add_branch, as_tokens
from stce_jax.models.bodies.tables import fit_tables
from stce_jax.models.downsampling import PatchMerging, SuperTokenDownsample
from stce_jax.models.layers import MLP, LayerNorm, is_training
from stce_jax.models.ops.norms import TORCH_LAYER_NORM_EPSILON
from stce_jax.models.ops.supertoken import MOST_ITERATIONS
from stce_jax.models.remat import remat
from stce_jax.models.tokens import Tokens

LARGEST_WINDOW = 128  # places along a side: what a window costs grows with the fourth power
DOWNSAMPLES = ("merging", "stce")


class SwinBlock(nn.Module):
    """Window attention, then an MLP, each after LayerNorm and a residual branch.

    Attributes:
      heads: of the attention; must divide C.
      window, shift: places along a window's sides, and by how many the windows are shifted.
      hidden: width of the MLP's hidden layer.
      dtype: dtype of the computation; parameters are float32.
    """

    heads: int
    window: int
    shift: int
    hidden: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, features: Float[Array, "B H W C"], scales: Float[Array, "2 B 1 1 1"] | None
    ) -> Float[Array, "B H W C"]:
        """Computes a map of the same shape; `scales` multiply the branches (stochastic depth), None leaves them."""
        batch, height, width, channels = features.shape
        window, shift = (self.window, self.window), (self.shift, self.shift)
        branch = LayerNorm(self.dtype, TORCH_LAYER_NORM_EPSILON, name="attention_norm")(features)
        branch = WindowAttention(self.heads, window, shift, self.dtype, name="attention")(branch)
        features = add_branch(features, branch, scales, 0)
        branch = LayerNorm(self.dtype, TORCH_LAYER_NORM_EPSILON, name="mlp_norm")(features)
        branch = MLP(self.hidden, dtype=self.dtype, name="mlp")(branch.reshape(batch, height * width, channels), False)
        return add_branch(features, branch.reshape(features.shape), scales, 1)


class Swin(StagedBody):
    """Stages of `SwinBlock`, patch merging between them, images [B, H, W, 3] -> logits [B, classes], float32.

    The published models have the embedding `linear_patch`, patches of 4x4 pixels, which the names swin_t, swin_s and
    swin_b stand for; any other works as well. A LayerNorm of the body follows it. Images of any size that the embedding
    can cut work: maps that the windows do not divide are padded, and a side no longer than the window is one window,
    as in timm; the published code refuses the first and decides the second for both sides at once. Biases are learned
    for offsets between places, so their tables do not depend on the size of images.

    Options of stages have an entry for each.

    Beside the attributes of `StagedBody`:

    Attributes:
      widths, depths, heads: channels, number of blocks and attention heads of each stage.
      window: places along a side of the windows; every second block's are shifted by half of it, rounded down.
      mlp_ratio: width of an MLP's hidden layer over that of its stage.
      downsample: "merging" of four neighbours, or "stce": super-token clustering in its place (`SuperTokenDownsample`),
        which is in neither paper.
      downsample_iterations: of that clustering, >= 1.
    """

    widths: Sequence[int] = (96, 192, 384, 768)
    depths: Sequence[int] = (2, 2, 6, 2)
    heads: Sequence[int] = (3, 6, 12, 24)
    window: int = 7
    mlp_ratio: int = 4
    downsample: str = "merging"
    downsample_iterations: int = 3

    EMBEDDING: ClassVar[str] = "linear_patch"
    # The published ones, each with the drop path that it was trained with on ImageNet at 224 pixels.
    SIZES: ClassVar[dict[str, dict[str, Any]]] = {
        "t": {"drop_path": 0.2},
        "s": {"depths": (2, 2, 18, 2), "drop_path": 0.3},
        "b": {
            "widths": (128, 256, 512, 1024),
            "depths": (2, 2, 18, 2),
            "heads": (4, 8, 16, 32),
            "drop_path": 0.5,
        },
    }

    def check(self) -> None:
        """Raises ConfigError if the options cannot work."""
        self.check_stages({"widths": WIDTHS, "depths": DEPTHS, "heads": HEADS})
        check_whole("model option window", self.window, 1, LARGEST_WINDOW)
        check_whole("model option mlp_ratio", self.mlp_ratio, 1, 64)
        check_choice("model option downsample", self.downsample, DOWNSAMPLES)
        check_whole("model option downsample_iterations", self.downsample_iterations, 1, MOST_ITERATIONS)

    def setup(self) -> None:
        self.check()
        self.embedding_norm = LayerNorm(self.dtype, TORCH_LAYER_NORM_EPSILON)
        block = remat(SwinBlock, self.remat)
        self.blocks = [
            block(heads, self.window, index % 2 * (self.window // 2), self.mlp_ratio * width, self.dtype)
            for width, depth, heads in zip(self.widths, self.depths, self.heads, strict=True)
            for index in range(depth)
        ]
        if self.downsample == "merging":
            self.downsampling: Any = [PatchMerging(width, self.dtype) for width in self.widths[1:]]
        else:
            iterations = self.downsample_iterations
            self.downsampling = [SuperTokenDownsample(width, iterations, self.dtype) for width in self.widths[1:]]
        self.norm = LayerNorm(self.dtype, TORCH_LAYER_NORM_EPSILON)
        self.head = self.make_head()

    def tokens(self, images: Float[Array, "B H W 3"], train: bool | None = None) -> Tokens:
        """Normalised images -> the last stage's tokens after LayerNorm; no leading token."""
        train = is_training(self, train)
        features = self.embedding_norm(self.embed(images, train))
        features = self.run_stages(features, self.depths, self.downsampling, train)
        return as_tokens(self.norm(features))

    def unshaped_options(self) -> dict[str, Any]:
        """Options that change the logits and show in no parameter's shape; a table's shape shows heads and window."""
        return {"downsample_iterations": self.downsample_iterations} if self.downsample == "stce" else {}

    def fit_weights(
        self, found: dict[str, Any], expected: dict[str, Any], old_grid: tuple[int, int] | None
    ) -> tuple[dict[str, Any], str]:
        """Brings the tables of relative positions of another window to this one's; the rest as it is."""
        del old_grid
        return fit_tables(found, expected)
