"""DAT, the vision transformer with deformable attention, as published with its paper (version 1).

Source: Xia et al. 2022, arXiv 2201.00520, and its published code of that time. The later one is `datpp`.

Shape letters: B batch, H W image height and width or of features, C channels, h w those of a smaller map.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.errors import ConfigError, check_range, check_whole, shown
from stce_jax.models.attentions.deformable import DeformableAttention, sampled_grid
from stce_jax.models.attentions.window import WindowAttention
from stce_jax.models.bodies.stages import (
    HEADS,
    WIDTHS,
    StagedBody,
    add_branch,
    as_tokens,
    refuse_small,
    whole,
)
from stce_jax.models.bodies.tables import fit_tables
from stce_jax.models.conv_layers import (
    DepthwiseResidual,
    LayerScale,
    NormedHalving,
    uniform_initializers,
)
from stce_jax.models.layers import LayerNorm, is_training, linear
from stce_jax.models.ops.norms import TORCH_LAYER_NORM_EPSILON
from stce_jax.models.remat import remat
from stce_jax.models.tokens import Tokens

MOST_BLOCKS = 1024  # of a stage
LARGEST_WINDOW = 64  # on a side
table_init = nn.initializers.truncated_normal(0.01, lower=-200.0, upper=200.0)


class DATBlock(nn.Module):
    """An attention and an MLP, each a residual branch after LayerNorm: [B, H, W, C] -> [B, H, W, C].

    Attributes:
      attention: a module from map to map.
      hidden: hidden width of the MLP.
      convolutions: whether the block starts with a `DepthwiseResidual` and the MLP has one before its GELU (DAT++).
      layer_scale: what the branches are first multiplied by; 0: no layer scale.
      dtype: dtype of the computation; parameters are float32.
    """

    attention: Any
    hidden: int
    convolutions: bool = False
    layer_scale: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, features: Float[Array, "B H W C"], scales: Float[Array, "2 B 1 1 1"] | None
    ) -> Float[Array, "B H W C"]:
        """Computes a map of the same shape; `scales` multiply the branches (stochastic depth), None leaves them."""
        if self.convolutions:
            features = DepthwiseResidual(self.dtype, name="position")(features)
        branch = self.attention(LayerNorm(self.dtype, TORCH_LAYER_NORM_EPSILON, name="attention_norm")(features))
        features = add_branch(features, self._scaled(branch, "attention_scale"), scales, 0)
        branch = self._mlp(LayerNorm(self.dtype, TORCH_LAYER_NORM_EPSILON, name="mlp_norm")(features))
        return add_branch(features, self._scaled(branch, "mlp_scale"), scales, 1)

    def _mlp(self, features: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        *places, channels = features.shape
        # PyTorch's own initialisation, as everywhere here: the published code's never reaches a module.
        options = (uniform_initializers(channels), uniform_initializers(self.hidden))
        hidden = linear(self.hidden, self.dtype, "mlp_in", **options[0])(features.reshape(-1, channels))
        if self.convolutions:
            hidden = DepthwiseResidual(self.dtype, name="mlp_depthwise")(hidden.reshape(*places, self.hidden))
        layer = linear(channels, self.dtype, "mlp_out", activated=True, **options[1])
        return layer(hidden.reshape(-1, self.hidden)).reshape(features.shape)

    def _scaled(self, branch: jax.Array, name: str) -> jax.Array:
        return LayerScale(self.layer_scale, self.dtype, name=name)(branch) if self.layer_scale else branch


class DAT(StagedBody):
    """Stages of `DATBlock`, a 2x2 convolution between them, images [B, H, W, 3] -> logits [B, classes], float32.

    The letters of `kinds` say which attention each block of a stage has: L within windows, S within windows that are
    shifted by half of their side, rounded up, D deformable.

    Images of any size work that leaves each stage a place. The tables of D are for maps of `image_size`, and other
    sizes read them between their numbers; `fit_weights` brings those of another size to it.

    Options of stages have an entry for each.

    Beside the attributes of `StagedBody`:

    Attributes:
      widths, heads: channels and attention heads of each stage.
      kinds: a letter for each block of each stage.
      windows: side of the windows of each stage.
      groups: groups of channels of D in each stage, which have samples of their own; must divide the heads.
      kernels: side of the kernel that makes the offsets of D in each stage.
      strides: steps between two samples in each stage.
      offset_ranges: how far samples lie from the grid's places, in steps of it, in each stage; 0: anywhere.
      mlp_ratio: hidden width of an MLP over the stage's.
    """

    widths: Sequence[int] = (96, 192, 384, 768)
    heads: Sequence[int] = (3, 6, 12, 24)
    kinds: Sequence[str] = ("LS", "LS", "LDLDLD", "LD")
    windows: Sequence[int] = (7, 7, 7, 7)
    groups: Sequence[int] = (1, 1, 3, 6)
    kernels: Sequence[int] = (9, 7, 5, 3)
    strides: Sequence[int] = (1, 1, 1, 1)
    offset_ranges: Sequence[float] = (2.0, 2.0, 2.0, 2.0)
    mlp_ratio: int = 4

    EMBEDDING: ClassVar[str] = "linear_patch"
    SIZES: ClassVar[dict[str, dict[str, Any]]] = {"t": {"drop_path": 0.2}}
    LETTERS: ClassVar[str] = "LSD"
    LEAST_SAMPLES: ClassVar[int] = 1  # on a side

    def check(self) -> None:
        """Raises ConfigError if the options cannot work."""
        sides = whole(1, LARGEST_WINDOW)
        self.check_stages(
            {
                "widths": WIDTHS,
                "heads": HEADS,
                "kinds": self._check_kinds,
                "windows": sides,
                "groups": HEADS,
                "kernels": sides,
                "strides": sides,
                "offset_ranges": _check_offset_range,
            }
        )
        for kinds, heads, groups in zip(self.kinds, self.heads, self.groups, strict=True):
            if "D" in kinds and heads % groups:
                raise ConfigError(f"{heads} heads of a stage with D cannot be divided among {groups} groups")
        check_whole("model option mlp_ratio", self.mlp_ratio, 1, 64)

    def setup(self) -> None:
        self.check()
        make = remat(DATBlock, self.remat)
        self.blocks = [
            make(self.attention(stage, kind, size), **self._block_options(stage))
            for stage, size in enumerate(self.stage_grids(*self.image_size))
            for kind in self.kinds[stage]
        ]
        self.embedding_norm = LayerNorm(self.dtype, TORCH_LAYER_NORM_EPSILON)
        self.halving = [self._halving(width) for width in self.widths[1:]]
        self.norm = LayerNorm(self.dtype, TORCH_LAYER_NORM_EPSILON)
        initializers = uniform_initializers(self.widths[-1])
        self.head = linear(self.num_classes, self.dtype, **initializers) if self.num_classes else None

    def tokens(self, images: Float[Array, "B H W 3"], train: bool | None = None) -> Tokens:
        """Normalised images -> the last stage's tokens after LayerNorm; no leading token."""
        train = is_training(self, train)
        features = self.embedding_norm(self.embed(images, train))
        features = self.run_stages(features, [len(kinds) for kinds in self.kinds], self.halving, train)
        return as_tokens(self.norm(features))

    def stage_grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """How each stage's tokens lie; ConfigError if a stage has none, or too few for its samples."""
        grids = super().stage_grids

        def fits(rows: int, columns: int) -> bool:
            sides = grids(rows, columns)
            samples = [
                min(sampled_grid(*size, self.kernels[stage], self.strides[stage]))
                for stage, size in enumerate(sides)
                if "D" in self.kinds[stage]
            ]
            return min(sides[-1]) > 0 and min(samples, default=self.LEAST_SAMPLES) >= self.LEAST_SAMPLES

        refuse_small(self, height, width, fits)
        return grids(height, width)

    def downsampled(self, rows: int, columns: int) -> tuple[int, int]:
        return rows // 2, columns // 2

    def unshaped_options(self) -> dict[str, Any]:
        """Options that change the logits and show in no parameter's shape."""
        return {name: getattr(self, name) for name in ("kinds", "strides", "offset_ranges")}

    def fit_weights(
        self, found: dict[str, Any], expected: dict[str, Any], old_grid: tuple[int, int] | None
    ) -> tuple[dict[str, Any], str]:
        """Brings tables of another image size or window to this one's by bicubic interpolation."""
        del old_grid
        return fit_tables(found, expected)

    def attention(self, stage: int, kind: str, size: tuple[int, int]) -> nn.Module:
        """The attention of a letter; without a parent, as the block that takes it is to be."""
        heads, window = self.heads[stage], self.windows[stage]
        if kind == "D":
            return DeformableAttention(
                heads,
                self.groups[stage],
                size,
                self.kernels[stage],
                self.strides[stage],
                self.offset_ranges[stage],
                dtype=self.dtype,
                parent=None,
            )
        # Rounded up, where Swin rounds down: in the published code windows of 7 are shifted by 4.
        shift = -(-window // 2) if kind == "S" else 0
        return WindowAttention(
            heads,
            (window, window),
            (shift, shift),
            self.dtype,
            table_init,
            uniform_initializers,
            parent=None,
        )

    def _block_options(self, stage: int) -> dict[str, Any]:
        return {"hidden": self.mlp_ratio * self.widths[stage], "dtype": self.dtype}

    def _halving(self, width: int) -> nn.Module:
        return NormedHalving(width, 2, bias=False, dtype=self.dtype)

    def _check_kinds(self, what: str, entry: Any) -> None:
        if not isinstance(entry, str) or not 0 < len(entry) <= MOST_BLOCKS or set(entry) - set(self.LETTERS):
            raise ConfigError(
                f"{what} is {shown(entry)}; it must be a letter for each block, of {', '.join(self.LETTERS)}, such as "
                f"{shown(self.LETTERS[0] + self.LETTERS[-1])}"
            )


def _check_offset_range(what: str, entry: Any) -> None:
    check_range(what, entry, 0, LARGEST_WINDOW)
