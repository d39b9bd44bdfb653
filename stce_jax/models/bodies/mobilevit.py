"""MobileViT, convolutions with transformers between, over any embedding.

Source: Mehta and Rastegari 2022, "MobileViT: Light-weight, General-purpose, and Mobile-friendly Vision Transformer",
arXiv 2110.02178; timm's form of its published code.

Shape letters: B batch, H W image or feature height and width, C channels, h w grid, P = 4 places of a patch, n patches
of a map, D width of a token, A heads, E width of a head.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.errors import check_range, check_whole
from stce_jax.models.batch_norms import BatchNormSilu
from stce_jax.models.bodies.stages import DEPTHS, HEADS, WIDTHS, StagedBody, add_branch, as_tokens, whole
from stce_jax.models.conv_layers import convolution, he_normal_fan_out, pointwise
from stce_jax.models.embeddings.mobilevit import LARGEST_EXPANSION, InvertedResidual
from stce_jax.models.layers import LayerNorm, is_training, linear
from stce_jax.models.ops.attention import dot_product_attention
from stce_jax.models.ops.norms import TORCH_LAYER_NORM_EPSILON
from stce_jax.models.ops.precision import widened
from stce_jax.models.remat import remat
from stce_jax.models.tokens import Tokens

PATCH = 2  # side of a patch in places of the map
MLP_RATIO = 2
Scales = Float[Array, "2 B 1 1 1"] | None


class TransformerBlock(nn.Module):
    """A pre-norm block, MLP with SiLU, whose tokens see those at the same place of all other patches.

    Attributes:
      heads: number of heads; must divide D.
      dropout: rate of what attention and MLP give, 0 <= rate < 1.
      dtype: dtype of the computation; parameters are float32.
    """

    heads: int
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, values: Float[Array, "B P n D"], scales: Scales, train: bool) -> Float[Array, "B P n D"]:
        """Computes tokens; `scales` multiply the two branches (stochastic depth), None leaves them."""
        branch = self._attend(LayerNorm(self.dtype, TORCH_LAYER_NORM_EPSILON, name="attention_norm")(values))
        values = add_branch(values, nn.Dropout(self.dropout)(branch, deterministic=not train), scales, 0)
        width = values.shape[-1]
        rows = LayerNorm(self.dtype, TORCH_LAYER_NORM_EPSILON, name="mlp_norm")(values).reshape(
            -1, width
        )  # see `layers.Attention`
        rows = nn.silu(linear(MLP_RATIO * width, self.dtype, "mlp_in")(rows))
        branch = linear(width, self.dtype, "mlp_out")(rows).reshape(values.shape)
        return add_branch(values, nn.Dropout(self.dropout)(branch, deterministic=not train), scales, 1)

    def _attend(self, values: Float[Array, "B P n D"]) -> Float[Array, "B P n D"]:
        batch, places, count, width = values.shape
        rows = linear(3 * width, self.dtype, "qkv")(values.reshape(-1, width))
        heads = (batch * places, count, self.heads, width // self.heads)  # [B P, n, A, E]
        query, key, value = (part.reshape(heads) for part in jnp.split(rows, 3, axis=-1))
        outputs = dot_product_attention(query, key, value).reshape(-1, width)
        return linear(width, self.dtype, "out")(outputs).reshape(values.shape)


class MobileViTBlock(nn.Module):
    """Convolutions around transformer blocks, joined with the inputs: [B, H, W, C] -> [B, H, W, C].

    Where a side of the map is odd, it is resized to the next even one for the transformer, and back (bilinear).

    Attributes:
      width: D of the tokens.
      depth: number of transformer blocks.
      heads, dropout: see `TransformerBlock`.
      dtype: dtype of the computation; parameters and statistics are float32.
      axis_name: of BatchNorm's statistics, see `batch_norms.BatchNorm`.
    """

    width: int
    depth: int
    heads: int
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    axis_name: Any = None

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"], scales: list[Scales], train: bool) -> Float[Array, "B H W C"]:
        """Computes a map of the same shape; `scales`: see `TransformerBlock`, for each."""

        def activated(features: jax.Array, name: str) -> jax.Array:
            return BatchNormSilu(self.dtype, self.axis_name, name=name)(features, train)

        height, width, channels = inputs.shape[1:]
        local = convolution(channels, 3, 1, self.dtype, bias=False, name="local")(inputs)
        features = pointwise(activated(local, "local_norm"), self.width, self.dtype, "widen", use_bias=False)
        even = (height + height % PATCH, width + width % PATCH)
        tokens = unfold(_resized(features, even))
        for index, own in enumerate(scales):
            tokens = TransformerBlock(self.heads, self.dropout, self.dtype, name=f"layers_{index}")(tokens, own, train)
        tokens = LayerNorm(self.dtype, TORCH_LAYER_NORM_EPSILON, name="norm")(tokens)
        features = _resized(fold(tokens, even), (height, width))
        features = pointwise(features, channels, self.dtype, "narrow", use_bias=False)
        # The block's inputs, not those of the transformer, come first.
        joined = jnp.concatenate([inputs.astype(self.dtype), activated(features, "narrow_norm")], axis=-1)
        fused = convolution(channels, 3, 1, self.dtype, bias=False, name="fusion")(joined)
        return activated(fused, "fusion_norm")


class MobileViT(StagedBody):
    """Stages of an `InvertedResidual` and a `MobileViTBlock`, images [B, H, W, 3] -> logits [B, classes], float32.

    The published models have the embedding `mobilevit`, a token for 4x4 pixels, and were trained on images of 160 to
    320 pixels whose values were not normalised by mean and standard deviation; 256 pixels is the size of evaluation.
    Any other embedding works as well, and images of any size.

    Options of stages have an entry for each.

    Beside the attributes of `StagedBody`:

    Attributes:
      width: channels of the embedding's tokens.
      widths: channels of each stage's map.
      token_widths, depths, heads: width of the transformer's tokens, its blocks and attention heads in each stage.
      strides: of each stage, 1 or 2.
      expansion: hidden channels of an `InvertedResidual` over its inputs'.
      head_width: channels of the pooled features.
      dropout: rate of what attention and MLP give, 0 <= rate < 1.
      head_dropout: rate before the head, 0 <= rate < 1.
      axis_name: of BatchNorm's statistics, see `batch_norms.BatchNorm`.
    """

    width: int = 64
    widths: Sequence[int] = (96, 128, 160)
    token_widths: Sequence[int] = (144, 192, 240)
    depths: Sequence[int] = (2, 4, 3)
    heads: Sequence[int] = (4, 4, 4)
    strides: Sequence[int] = (2, 2, 2)
    expansion: int = 4
    head_width: int = 640
    dropout: float = 0.0
    head_dropout: float = 0.0
    axis_name: Any = None

    EMBEDDING: ClassVar[str] = "mobilevit"
    # The published ones, each with the dropout that it was trained with.
    SIZES: ClassVar[dict[str, dict[str, Any]]] = {
        "xxs": {
            "width": 24,
            "widths": (48, 64, 80),
            "token_widths": (64, 80, 96),
            "expansion": 2,
            "head_width": 320,
            "dropout": 0.05,
            "head_dropout": 0.1,
        },
        "xs": {
            "width": 48,
            "widths": (64, 80, 96),
            "token_widths": (96, 120, 144),
            "head_width": 384,
            "dropout": 0.1,
            "head_dropout": 0.1,
        },
        "s": {"dropout": 0.1, "head_dropout": 0.1},
    }

    def check(self) -> None:
        """Raises ConfigError if the options cannot work."""
        checks = {"widths": WIDTHS, "token_widths": WIDTHS, "depths": DEPTHS, "heads": HEADS, "strides": whole(1, 2)}
        self.check_stages(checks, divided="token_widths")
        check_whole("model option width", self.width, 1, 16_384)
        check_whole("model option expansion", self.expansion, 1, LARGEST_EXPANSION)
        check_whole("model option head_width", self.head_width, 1, 16_384)
        for option in ("dropout", "head_dropout"):
            check_range(f"model option {option}", getattr(self, option), 0, 1, below=True)

    def setup(self) -> None:
        self.check()
        residual = remat(InvertedResidual, self.remat)
        block = remat(MobileViTBlock, self.remat)
        self.residuals = [
            residual(width, stride, self.expansion, self.dtype, self.axis_name)
            for width, stride in zip(self.widths, self.strides, strict=True)
        ]
        self.blocks = [
            block(width, depth, heads, self.dropout, self.dtype, self.axis_name)
            for width, depth, heads in zip(self.token_widths, self.depths, self.heads, strict=True)
        ]
        self.projection = linear(self.head_width, self.dtype, use_bias=False, kernel_init=he_normal_fan_out)
        self.norm = BatchNormSilu(self.dtype, self.axis_name)
        self.pooled_dropout = nn.Dropout(self.head_dropout)
        self.head = self.make_head()

    def tokens(self, images: Float[Array, "B H W 3"], train: bool | None = None) -> Tokens:
        """Normalised images -> the last stage's tokens after 1x1 convolution, BatchNorm and SiLU; no leading token."""
        train = is_training(self, train)
        features = self.embed(images, train)
        scales, done = self.branch_scales(features.shape[0], sum(self.depths), train), 0
        for residual, block, depth in zip(self.residuals, self.blocks, self.depths, strict=True):
            features = block(residual(features, train), scales[done : done + depth], train)
            done += depth
        batch, rows, columns, channels = features.shape
        projected = self.projection(features.reshape(-1, channels)).reshape(batch, rows, columns, self.head_width)
        return as_tokens(self.norm(projected, train))

    def before_head(self, pooled: Float[Array, "B D"], train: bool | None) -> Float[Array, "B D"]:
        return self.pooled_dropout(pooled, deterministic=not is_training(self, train))

    @property
    def embedding_width(self) -> int:
        return self.width

    def stage_grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """The sides of every stage's map, each rounded up."""
        grids, (rows, columns) = [], self.embedding.grid(height, width)
        for stride in self.strides:
            rows, columns = -(-rows // stride), -(-columns // stride)
            grids.append((rows, columns))
        return grids

    def unshaped_options(self) -> dict[str, Any]:
        """Options that change the logits and show in no parameter's shape."""
        return {"heads": self.heads, "strides": self.strides}


def unfold(features: Float[Array, "B H W C"]) -> Float[Array, "B P n C"]:
    """The places of each patch apart: place (y, x) of all patches, which lie row by row."""
    batch, height, width, channels = features.shape
    rows, columns = height // PATCH, width // PATCH
    cut = features.reshape(batch, rows, PATCH, columns, PATCH, channels)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(batch, PATCH * PATCH, rows * columns, channels)


def fold(tokens: Float[Array, "B P n C"], size: tuple[int, int]) -> Float[Array, "B H W C"]:
    """The map of `size` that `unfold` has taken apart."""
    batch, channels = tokens.shape[0], tokens.shape[-1]
    cut = tokens.reshape(batch, PATCH, PATCH, size[0] // PATCH, size[1] // PATCH, channels)
    return cut.transpose(0, 3, 1, 4, 2, 5).reshape(batch, *size, channels)


def _resized(features: Float[Array, "B H W C"], size: tuple[int, int]) -> Float[Array, "B h w C"]:
    if features.shape[1:3] == size:
        return features
    shape = (features.shape[0], *size, features.shape[-1])
    return jax.image.resize(widened(features), shape, "bilinear", antialias=False).astype(features.dtype)
