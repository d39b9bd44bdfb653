"""CMT, convolutions and attention in one block, over any embedding.

Source: Guo et al. 2021, "CMT: Convolutional Neural Networks Meet Vision Transformers", arXiv 2107.06263, and the code
that its first author published.

Shape letters: B batch, H W image or feature height and width, C channels, N places of a map, M keys, A heads, h w grid,
D width of the last tokens.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.errors import CheckpointError, ConfigError, check_range, check_whole
from stce_jax.models.attentions.light import LightAttention
from stce_jax.models.batch_norms import BatchNorm, BatchNormSilu, GeluBatchNorm
from stce_jax.models.bodies.stages import DEPTHS, HEADS, WIDTHS, StagedBody, add_branch, as_tokens, stage_ranges, whole
from stce_jax.models.conv_layers import DepthwiseResidual, he_normal_fan_out, pointwise
from stce_jax.models.embeddings.cmt import HalvingPatches
from stce_jax.models.layers import LayerNorm, is_training, linear
from stce_jax.models.ops.norms import TORCH_LAYER_NORM_EPSILON
from stce_jax.models.ops.positions import Grid, resize_position_bias
from stce_jax.models.remat import remat
from stce_jax.models.tokens import Tokens

FARTHEST = 128  # tokens more or fewer in a side that works than in one that does not


class ConvMLP(nn.Module):
    """CMT's inverted residual MLP (IRFFN): 1x1, 3x3 depthwise and 1x1 convolution, a BatchNorm behind each.

    As published, the shortcut is added before the GELU, and none leads around the 1x1 convolutions.

    Attributes:
      hidden: channels between the 1x1 convolutions.
      dtype: dtype of the computation; parameters and statistics are float32.
      axis_name: of BatchNorm's statistics, see `batch_norms.BatchNorm`.
    """

    hidden: int
    dtype: jnp.dtype = jnp.float32
    axis_name: Any = None

    @nn.compact
    def __call__(self, features: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        hidden = pointwise(features, self.hidden, self.dtype, "in")
        hidden = GeluBatchNorm(self.dtype, self.axis_name, name="in_norm")(hidden, train=train)
        hidden = DepthwiseResidual(self.dtype, he_normal_fan_out, name="depthwise")(hidden)
        hidden = GeluBatchNorm(self.dtype, self.axis_name, name="depthwise_norm")(hidden, train=train)
        outputs = pointwise(hidden, features.shape[-1], self.dtype, "out")
        return BatchNorm(self.dtype, self.axis_name, name="out_norm")(outputs, train)


class CMTBlock(nn.Module):
    """Depthwise convolution, light attention, convolutional MLP; the last two after LayerNorm, each a residual branch.

    Attributes:
      heads, key_stride, dtype: dtype of the computation; parameters and statistics are float32.
      axis_name: of BatchNorm's statistics, see `batch_norms.BatchNorm`.
      hidden: see `ConvMLP`.
    """

    heads: int
    key_stride: int
    hidden: int
    dtype: jnp.dtype = jnp.float32
    axis_name: Any = None

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "B H W C"],
        bias: Float[Array, "A N M"],
        scales: Float[Array, "2 B 1 1 1"] | None,
        train: bool,
    ) -> Float[Array, "B H W C"]:
        """Computes a map of the same shape; `scales` multiply two branches (stochastic depth), None leaves them."""
        features = DepthwiseResidual(self.dtype, he_normal_fan_out, name="position")(features)
        branch = LayerNorm(self.dtype, name="attention_norm")(features)
        attention = LightAttention(self.heads, self.key_stride, self.dtype, self.axis_name, name="attention")
        features = add_branch(features, attention(branch, bias, train), scales, 0)
        branch = LayerNorm(self.dtype, name="mlp_norm")(features)
        branch = ConvMLP(self.hidden, self.dtype, self.axis_name, name="mlp")(branch, train)
        return add_branch(features, branch, scales, 1)


class CMT(StagedBody):
    """Stages of `CMTBlock`, 2x2 convolutions of stride 2 between them: images [B, H, W, 3] -> logits [B, classes].

    Each stage has one learned bias for every query's and key's place, which its blocks share. So a model is for images
    of its `image_size` alone, and refuses others; `fit_weights` resamples the biases for a model of another size.

    The published models have the embedding `cmt`, a token for 4x4 pixels, and were trained on images of 160 (ti), 192
    (xs), 224 (s) and 256 (b) pixels; `image_size` is yours to choose. Any other embedding works as well.

    Options of stages have an entry for each.

    Beside the attributes of `StagedBody`:

    Attributes:
      widths, depths, heads: channels, number of blocks and attention heads of each stage.
      key_strides: places of each stage's map, in both directions, that share a key; must divide the map's sides.
      mlp_ratios: hidden channels of the MLPs over those of their stage; the product is rounded down.
      head_width: channels of the pooled features.
      dropout: rate before the head, 0 <= rate < 1.
      axis_name: of BatchNorm's statistics, see `batch_norms.BatchNorm`.
    """

    widths: Sequence[int] = (64, 128, 256, 512)
    depths: Sequence[int] = (3, 3, 16, 3)
    heads: Sequence[int] = (1, 2, 4, 8)
    key_strides: Sequence[int] = (8, 4, 2, 1)
    mlp_ratios: Sequence[float] = (4.0, 4.0, 4.0, 4.0)
    head_width: int = 1280
    dropout: float = 0.0
    axis_name: Any = None

    EMBEDDING: ClassVar[str] = "cmt"
    # The published ones, each with the drop path and dropout that it was trained with.
    SIZES: ClassVar[dict[str, dict[str, Any]]] = {
        "ti": {
            "widths": (46, 92, 184, 368),
            "depths": (2, 2, 10, 2),
            "mlp_ratios": (3.6, 3.6, 3.6, 3.6),
            "drop_path": 0.1,
        },
        "xs": {
            "widths": (52, 104, 208, 416),
            "depths": (3, 3, 12, 3),
            "mlp_ratios": (3.77, 3.77, 3.77, 3.77),
            "drop_path": 0.08,
        },
        "s": {"drop_path": 0.1},
        "b": {"widths": (76, 152, 304, 608), "depths": (4, 4, 20, 4), "drop_path": 0.25, "dropout": 0.3},
    }

    def check(self) -> None:
        """Raises ConfigError if the options cannot work."""
        checks = {"widths": WIDTHS, "depths": DEPTHS, "heads": HEADS, "key_strides": whole(1, 1024)}
        self.check_stages(checks | {"mlp_ratios": _ratio})
        for width, ratio in zip(self.widths, self.mlp_ratios, strict=True):
            if int(width * ratio) < 1:
                raise ConfigError(f"an MLP of ratio {ratio} has no hidden channel of {width}; take a larger ratio")
        check_whole("model option head_width", self.head_width, 1, 16_384)
        check_range("model option dropout", self.dropout, 0, 1, below=True)

    def setup(self) -> None:
        self.check()
        block = remat(CMTBlock, self.remat)
        stages = zip(self.widths, self.depths, self.heads, self.key_strides, self.mlp_ratios, strict=True)
        self.blocks = [
            block(heads, stride, int(width * ratio), self.dtype, self.axis_name)
            for width, depth, heads, stride, ratio in stages
            for _ in range(depth)
        ]
        # The authors let weight decay act on these, for their list of exceptions names what the model does not have.
        # Here they are no kernels, and do not decay.
        self.position_biases = [
            self.param(f"position_bias_{stage}", nn.initializers.normal(1.0), shape, jnp.float32)
            for stage, shape in enumerate(self._bias_shapes())
        ]
        self.merging = [HalvingPatches(width, self.dtype) for width in self.widths[1:]]
        # The LayerNorms before a stage; those of blocks have the ViT's epsilon.
        self.stage_norms = [LayerNorm(self.dtype, TORCH_LAYER_NORM_EPSILON) for _ in self.widths]
        self.projection = linear(self.head_width, self.dtype, kernel_init=he_normal_fan_out)
        self.norm = BatchNormSilu(self.dtype, self.axis_name)
        self.head_dropout = nn.Dropout(self.dropout)
        self.head = self.make_head()

    def tokens(self, images: Float[Array, "B H W 3"], train: bool | None = None) -> Tokens:
        """Normalised images -> the last stage's tokens after 1x1 convolution, BatchNorm and SiLU; no leading token."""
        train = is_training(self, train)
        height, width = images.shape[1:3]
        if (height, width) != tuple(self.image_size):
            raise ConfigError(
                f"this model's position biases are for images of {_times(self.image_size)} pixels, not "
                f"{height}x{width}; make one with that image_size, and take over the weights by init_from"
            )
        features = self._run_stages(self.embed(images, train), train)
        batch, rows, columns, channels = features.shape
        projected = self.projection(features.reshape(-1, channels)).reshape(batch, rows, columns, self.head_width)
        return as_tokens(self.norm(projected, train))

    def before_head(self, pooled: Float[Array, "B D"], train: bool | None) -> Float[Array, "B D"]:
        return self.head_dropout(pooled, deterministic=not is_training(self, train))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """How the last stage's tokens of an image of this size lie; ConfigError if key_strides do not divide a map."""
        grids = self.stage_grids(height, width)
        if (stage := self._misfit(grids)) is not None:
            near = (self._nearest(height, width, way) for way in (range(0, -FARTHEST, -1), range(1, FARTHEST)))
            fitting = " or ".join(_times(sides) for sides in near if sides)
            raise ConfigError(
                f"images of {height}x{width} pixels give stage {stage + 1} a map of {_times(grids[stage])}, which "
                f"key_strides {self.key_strides[stage]} does not divide; "
                + (f"{fitting} pixels would work" if fitting else "take fewer stages or smaller key_strides")
            )
        return grids[-1]

    def downsampled(self, rows: int, columns: int) -> tuple[int, int]:
        """The sides of the next stage's map: half, rounded down as in PyTorch."""
        return rows // 2, columns // 2

    def unshaped_options(self) -> dict[str, Any]:
        """None: heads and key_strides show in the shapes of the position biases."""
        return {}

    def fit_weights(
        self, found: dict[str, Any], expected: dict[str, Any], old_grid: Grid | None
    ) -> tuple[dict[str, Any], str]:
        """Resamples the position biases of images of another size, where all else fits.

        Args:
          found: {path: np.ndarray}, such as "params/norm/scale".
          expected: {path: anything with a shape} of the model that the weights are for.
          old_grid: (h, w) of the last stage of the model that they are of; None: its maps are squares.

        Raises:
          CheckpointError: the biases are of maps that are no squares, and of no multiple of `old_grid`.
        """
        fitted, note = dict(found), ""
        for stage, new in enumerate(self.stage_grids(*self.image_size)):
            path, stride = f"params/position_bias_{stage}", self.key_strides[stage]
            if path not in found or path not in expected or found[path].ndim != 3:
                continue
            heads, places, keys = found[path].shape
            old = new if old_grid is None and places == math.prod(new) else _old_grid(path, places, old_grid)
            old_grids, new_grids = ((grid, (grid[0] // stride, grid[1] // stride)) for grid in (old, new))
            if old == new or heads != expected[path].shape[0] or keys != math.prod(old_grids[1]):
                continue
            fitted[path] = resize_position_bias(np.asarray(found[path], np.float32), old_grids, new_grids)
            note = note or f"position biases interpolated from {_times(old)} to {_times(new)}"
        return fitted, note

    def _run_stages(self, features: Float[Array, "B H W C"], train: bool) -> Float[Array, "B h w C"]:
        scales = self.branch_scales(features.shape[0], len(self.blocks), train)
        for stage, numbers in enumerate(stage_ranges(self.depths)):
            if stage:
                features = self.merging[stage - 1](features)
            features = self.stage_norms[stage](features)
            for index in numbers:
                features = self.blocks[index](features, self.position_biases[stage], scales[index], train)
        return features

    def _bias_shapes(self) -> list[tuple[int, int, int]]:
        self.grid(*self.image_size)  # refuses maps that cannot be cut
        return [
            (heads, rows * columns, (rows // stride) * (columns // stride))
            for (rows, columns), heads, stride in zip(
                self.stage_grids(*self.image_size), self.heads, self.key_strides, strict=True
            )
        ]

    def _misfit(self, grids: list[Grid]) -> int | None:
        """The first stage whose map its key_strides do not divide, or that has no place left."""
        for stage, (grid, stride) in enumerate(zip(grids, self.key_strides, strict=True)):
            if any(side % stride or not side for side in grid):
                return stage
        return None

    def _nearest(self, height: int, width: int, counts: range) -> Grid | None:
        """The first size that works of whole tokens, with one of these counts more in both directions."""
        pixels = self.embedding.feature_places()[0]
        for count in counts:
            sides = (height // pixels + count) * pixels, (width // pixels + count) * pixels
            try:
                if min(sides) > 0 and self._misfit(self.stage_grids(*sides)) is None:
                    return sides
            except ConfigError:  # of the embedding
                continue
        return None


def _old_grid(path: str, places: int, last: Grid | None) -> Grid:
    """How the places of a bias lie: in a multiple of the last stage's grid, or in a square."""
    if last is not None:
        factor = math.isqrt(places // math.prod(last))
        if factor**2 * math.prod(last) == places:
            return factor * last[0], factor * last[1]
    side = math.isqrt(places)
    if side**2 != places:
        raise CheckpointError(f"{path} is of {places} places, no square map that could be interpolated to another")
    return side, side


def _times(sides: Sequence[int]) -> str:
    return f"{sides[0]}x{sides[1]}"


def _ratio(what: str, entry: Any) -> None:
    check_range(what, entry, 0, 64)
