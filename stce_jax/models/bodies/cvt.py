"""CvT, the convolutional vision transformer, over any embedding.

Source: Wu et al. 2021, "CvT: Introducing Convolutions to Vision Transformers", arXiv 2103.15808, and its published
code.

Shape letters: B batch, H W height and width of an image or of features, C channels, D width of the last stage, N
tokens, h w grid.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.errors import check_choice, check_whole
from stce_jax.models.attentions.convolutional import PROJECTIONS, SCALES, ConvAttention
from stce_jax.models.bodies.stages import DEPTHS, HEADS, WIDTHS, StagedBody, add_branch, as_tokens, stage_ranges
from stce_jax.models.conv_layers import convolution, uniform_initializers
from stce_jax.models.downsampling import SuperTokenDownsample
from stce_jax.models.layers import MLP, LayerNorm, is_training, truncated_normal
from stce_jax.models.ops.activations import gelu, quick_gelu
from stce_jax.models.ops.norms import TORCH_LAYER_NORM_EPSILON
from stce_jax.models.remat import remat
from stce_jax.models.tokens import Tokens

ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu}
DOWNSAMPLERS = ("conv", "stce")


class ConvAttentionBlock(nn.Module):
    """A pre-norm block: `ConvAttention`, MLP; each a residual branch after LayerNorm.

    Attributes:
      heads, projection, scale, axis_name: see `ConvAttention`.
      hidden: hidden width of the MLP.
      activation: of the MLP, one of `ACTIVATIONS`.
      dtype: dtype of the computation; parameters and statistics are float32.
    """

    heads: int
    hidden: int
    projection: str = "conv"
    scale: str = "width"
    activation: str = "quick_gelu"
    dtype: jnp.dtype = jnp.float32
    axis_name: Any = None

    @nn.compact
    def __call__(self, tokens: Tokens, scales: Float[Array, "2 B 1 1"] | None, train: bool) -> Tokens:
        """Computes as many tokens; `scales` multiply the two branches (stochastic depth), None leaves them."""
        values = tokens.values
        normed = LayerNorm(self.dtype, TORCH_LAYER_NORM_EPSILON, name="attention_norm")(values)
        attention = ConvAttention(self.heads, self.projection, self.scale, self.dtype, self.axis_name, name="attention")
        values = add_branch(values, attention(tokens.with_values(normed), train), scales, 0)
        normed = LayerNorm(self.dtype, TORCH_LAYER_NORM_EPSILON, name="mlp_norm")(values)
        mlp = MLP(self.hidden, dtype=self.dtype, activation=ACTIVATIONS[self.activation], name="mlp")
        return tokens.with_values(add_branch(values, mlp(normed, train=train), scales, 1))


class CvT(StagedBody):
    """Stages of `ConvAttentionBlock`, strided convolutions between them, images [B, H, W, 3] -> logits [B, classes].

    There are no positions, so that images of any size work. The class token is there in the last stage alone.

    Options of stages have an entry for each.

    Beside the attributes of `StagedBody`:

    Attributes:
      widths, depths, heads: channels, number of blocks and attention heads of each stage.
      mlp_ratio: hidden width of an MLP over the channels of its stage.
      class_token: read a class token; otherwise the mean of the last tokens.
      projection: of queries, keys and values, "conv" or "average", see `ConvAttention`.
      scale: of the attention's logits, "width", the published code's, or "head", see `ConvAttention`.
      activation: of the MLPs, "quick_gelu", the published code's, or the exact "gelu".
      downsample: between stages, "conv": a 3x3 convolution of stride 2; or "stce": super-token clustering in its place,
        see `SuperTokenDownsample`, which is not in the paper. A LayerNorm follows either.
      drop_path: stochastic depth rate of the last block, 0 <= rate < 1; it grows from 0 within the last stage, and the
        other stages have none.
      axis_name: of BatchNorm's statistics, see `batch_norms.BatchNorm`.
    """

    widths: Sequence[int] = (64, 192, 384)
    depths: Sequence[int] = (1, 2, 10)
    heads: Sequence[int] = (1, 3, 6)
    mlp_ratio: int = 4
    class_token: bool = True
    projection: str = "conv"
    scale: str = "width"
    activation: str = "quick_gelu"
    downsample: str = "conv"
    axis_name: Any = None

    EMBEDDING: ClassVar[str] = "overlap_patch"
    # Named by their number of blocks, each with the drop path that it was trained with on ImageNet at 224 pixels.
    SIZES: ClassVar[dict[str, dict[str, Any]]] = {
        "13": {"drop_path": 0.1},
        "21": {"depths": (1, 4, 16), "drop_path": 0.1},
    }

    def check(self) -> None:
        """Raises ConfigError if the options cannot work."""
        self.check_stages({"widths": WIDTHS, "depths": DEPTHS, "heads": HEADS})
        check_whole("model option mlp_ratio", self.mlp_ratio, 1, 64)
        for option, choices in (
            ("projection", PROJECTIONS),
            ("scale", SCALES),
            ("activation", ACTIVATIONS),
            ("downsample", DOWNSAMPLERS),
        ):
            check_choice(f"model option {option}", getattr(self, option), choices)

    def setup(self) -> None:
        self.check()
        block = remat(ConvAttentionBlock, self.remat)
        self.blocks = [
            block(
                heads,
                self.mlp_ratio * width,
                self.projection,
                self.scale,
                self.activation,
                self.dtype,
                self.axis_name,
            )
            for width, depth, heads in zip(self.widths, self.depths, self.heads, strict=True)
            for _ in range(depth)
        ]
        self.embedding_norms = [LayerNorm(self.dtype, TORCH_LAYER_NORM_EPSILON) for _ in self.widths]
        self.downsampling = [self._downsampler(stage) for stage in range(1, len(self.widths))]
        if self.class_token:
            self.class_tokens = self.param("class_token", truncated_normal, (1, 1, self.widths[-1]), jnp.float32)
        self.norm = LayerNorm(self.dtype, TORCH_LAYER_NORM_EPSILON)
        self.head = self.make_head()

    def tokens(self, images: Float[Array, "B H W 3"], train: bool | None = None) -> Tokens:
        """Normalised images -> the last stage's tokens after LayerNorm, the class token first."""
        train = is_training(self, train)
        features = self.embed(images, train)
        scales: list[jax.Array | None] = [None] * (len(self.blocks) - self.depths[-1])
        scales += self.branch_scales(features.shape[0], self.depths[-1], train)
        for stage, numbers in enumerate(stage_ranges(self.depths)):
            features = self.embedding_norms[stage](self.downsampling[stage - 1](features) if stage else features)
            tokens = as_tokens(features)
            if self.class_token and stage == len(self.depths) - 1:
                shape = (features.shape[0], 1, self.widths[-1])
                tokens = tokens.prepend(jnp.broadcast_to(self.class_tokens, shape).astype(self.dtype))
            for index in numbers:
                tokens = self.blocks[index](tokens, _of_tokens(scales[index]), train)
            features = tokens.image_values().reshape(features.shape)
        return tokens.with_values(self.norm(tokens.values))

    def pool(self, tokens: Tokens) -> Float[Array, "B D"]:
        """What the head reads of the tokens: the class token, or their mean."""
        return tokens.values[:, 0] if self.class_token else tokens.pooled_mean()

    def attention_grid(self, height: int, width: int) -> tuple[tuple[int, int], int]:
        """How the keys lie that the class token attends to, and how many of the embedding's tokens apart."""
        averaged = self.projection == "average"
        rows, columns = (side // 2 + 1 if averaged else -(-side // 2) for side in self.grid(height, width))
        return (rows, columns), 2 ** len(self.widths)

    def unshaped_options(self) -> dict[str, Any]:
        """Options that change the logits and show in no parameter's shape."""
        return {name: getattr(self, name) for name in ("heads", "scale", "activation")}

    def _downsampler(self, stage: int) -> nn.Module:
        width = self.widths[stage]
        if self.downsample == "stce":
            return SuperTokenDownsample(width, dtype=self.dtype)
        return convolution(width, 3, 2, self.dtype, name=None, **uniform_initializers(9 * self.widths[stage - 1]))


def _of_tokens(scales: jax.Array | None) -> Float[Array, "2 B 1 1"] | None:
    """The factors of `branch_scales`, which are for maps."""
    return None if scales is None else scales[..., 0]
