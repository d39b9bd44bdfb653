"""The vision transformer of plain blocks: ViT-S as EarlyConv and the STCE paper use it, over any embedding.

Shape letters: B batch, H W image height and width, N tokens, D model width, h w grid.
"""

import dataclasses
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.models.bodies.block import Block
from stce_jax.models.bodies.patch_dropout import PatchDropout
from stce_jax.models.bodies.vit_options import check_options, reducing_blocks
from stce_jax.models.bodies.vit_weights import fit_weights
from stce_jax.models.layers import NORMS, drop_path_scales, is_training, linear, truncated_normal
from stce_jax.models.ops import rotary
from stce_jax.models.ops.norms import LAYER_NORM_EPSILON
from stce_jax.models.ops.positions import resize_position_embedding, sincos_position_embedding
from stce_jax.models.ops.precision import widened
from stce_jax.models.reductions import Reduction, acts_before, counts_of
from stce_jax.models.remat import remat
from stce_jax.models.tokens import Tokens, check_tokens


class VisionTransformer(nn.Module):
    """A vision transformer over any embedding, images [B, H, W, 3] -> logits [B, classes], float32.

    Images of another size than `image_size` work too: the position embedding follows their grid.

    Attributes:
      embedding: a module of `embeddings`.
      num_classes: classes of the linear head; 0 leaves the head out and returns the pooled features [B, D].
      image_size: (height, width) in pixels for which the learned position embedding is made.
      width, depth, heads, mlp_dim: D, number of blocks, attention heads, hidden width of the MLPs.
      pooling: "class" reads a class token; "mean" averages the tokens and has no class token.
      position_embedding: "learned", or the fixed "sincos2d", which are added to the tokens; or "rope_axial" or
        "rope_mixed", by which each block turns queries and keys instead, see `ops.rotary`. As RoPE-ViT's they count
        places of the grid, at any image size, and leading tokens are not turned.
      registers: learned tokens behind those that heads read, without positions (Darcet et al. 2024, arXiv 2309.16588);
        0: none. They begin as the class token does.
      layer_scale: what each branch of a block is first multiplied by, 0..1, with a learned factor for each channel
        (Touvron et al. 2021, CaiT, arXiv 2103.17239); 0: there are none.
      norm: "layernorm" or "rmsnorm", of blocks and tokens, see `layers.NORMS`; an embedding's stay.
      qk_norm: norm queries and keys of each head, too, see `layers.Attention`.
      mlp: "gelu", or "swiglu" with as many parameters, see `layers.SwiGLU`.
      norm_epsilon: of the norms of blocks and tokens; Hugging Face's ViT has 1e-12.
      drop_path: stochastic depth rate of the last block, 0 <= rate < 1; needs the rng "dropout" in training.
      dropout: rate in attention outputs and MLPs, 0 <= rate < 1.
      patch_dropout: share of the image tokens that no block sees in training, 0 <= rate < 1, see `PatchDropout`. Not
        with a reduction.
      dtype: dtype of the computation; parameters are float32.
      remat: recompute each block in the backward pass instead of keeping its activations; `create_model` has the
        embedding do so with each of its modules of convolutions.
      scan_layers: one compiled block run `depth` times over stacked parameters [depth, ...]; compiles faster, but the
        last block then computes all tokens even where the class token alone is read. Not with a reduction.
      reduction: a module of `reductions`, or None.
    """

    embedding: Any
    num_classes: int
    image_size: tuple[int, int] = (224, 224)
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_dim: int = 1152
    pooling: str = "class"
    position_embedding: str = "learned"
    registers: int = 0
    layer_scale: float = 0.0
    norm: str = "layernorm"
    qk_norm: bool = False
    mlp: str = "gelu"
    norm_epsilon: float = LAYER_NORM_EPSILON
    drop_path: float = 0.0
    dropout: float = 0.0
    patch_dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    scan_layers: bool = False
    reduction: Reduction | None = None

    # S is EarlyConv's ViT-S, whose MLP ratio of 3 fits the paper's parameter counts at depth 12; Ti and B are the ViT
    # family's.
    SIZES: ClassVar[dict[str, dict[str, int]]] = {
        "ti": {"width": 192, "depth": 12, "heads": 3, "mlp_dim": 576},
        "s": {"width": 384, "depth": 12, "heads": 6, "mlp_dim": 1152},
        "b": {"width": 768, "depth": 12, "heads": 12, "mlp_dim": 3072},
    }

    def check(self) -> None:
        """Raises ConfigError if the options cannot work."""
        check_options(self)

    def setup(self) -> None:
        self.check()
        block = remat(Block, self.remat, in_loop=self.scan_layers)
        options: dict[str, Any] = {
            "heads": self.heads,
            "mlp_dim": self.mlp_dim,
            "dropout": self.dropout,
            "dtype": self.dtype,
            "epsilon": self.norm_epsilon,
            "norm_kind": self.norm,
            "mlp_kind": self.mlp,
            "layer_scale": self.layer_scale,
            "qk_norm": self.qk_norm,
            "rotary": self.position_embedding if self.position_embedding in rotary.ROTARY else "",
        }
        if self.scan_layers:
            self.blocks = block(**options)
        else:
            self.blocks = [block(**options, reduction=self._reduction_of(index)) for index in range(self.depth)]
        if self.pooling == "class":
            self.class_token = self.param("class_token", truncated_normal, (1, 1, self.width), jnp.float32)
        if self.position_embedding == "learned":
            rows, columns = self.embedding.grid(*self.image_size)
            count = rows * columns + self.heads_read
            self.learned_positions = self.param(
                "position_embedding", truncated_normal, (1, count, self.width), jnp.float32
            )
        if self.registers:
            shape = (1, self.registers, self.width)
            self.register_tokens = self.param("registers", truncated_normal, shape, jnp.float32)
        if self.patch_dropout:
            self.dropping = PatchDropout(self.patch_dropout, name="patch_dropout")
        self.last_norm = NORMS[self.norm](self.dtype, self.norm_epsilon, name="norm")
        if self.num_classes:
            self.head = linear(self.num_classes, self.dtype)

    def __call__(self, images: Float[Array, "B H W 3"], train: bool | None = None) -> Float[Array, "B classes"]:
        """Normalised images -> logits (or pooled features without classes), float32."""
        tokens = self._tokens_to_read(images, train)
        outputs = self.logits(tokens) if self.num_classes else self.pool(tokens)
        return widened(outputs)

    def features(self, images: Float[Array, "B H W 3"], train: bool | None = None) -> Float[Array, "B D"]:
        """Normalised images -> what the head reads, float32."""
        features = self.pool(self._tokens_to_read(images, train))
        return widened(features)

    def tokens(self, images: Float[Array, "B H W 3"], train: bool | None = None) -> Tokens:
        """Normalised images -> the last block's tokens after LayerNorm, class token first."""
        return self._normed(self._run_blocks(self._embed(images, train), train))

    @property
    def leading(self) -> int:
        """How many leading tokens there are: those that heads read, and registers behind them."""
        return self.heads_read + self.registers

    @property
    def heads_read(self) -> int:
        """How many leading tokens the heads read."""
        return int(self.pooling == "class")

    @property
    def fused_kernels(self) -> dict[str, int]:
        """Which linear layers are matrices side by side, see `bodies`: SwiGLU's gate and values, too."""
        return {"qkv": 3, "in": 2} if self.mlp == "swiglu" else {"qkv": 3}

    def leading_tokens(self) -> Float[Array, "1 n D"]:
        """The learned tokens that heads read; only where there are any."""
        return self.class_token

    def pool(self, tokens: Tokens) -> Float[Array, "B D"]:
        """What the head reads of the tokens."""
        return tokens.pooled_mean() if self.pooling == "mean" else tokens.values[:, 0]

    def logits(self, tokens: Tokens) -> Float[Array, "B classes"]:
        """What the head makes of the tokens; only where there are classes."""
        return self.head(self.pool(tokens))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """How the tokens of an image of this size lie, (rows, columns); ConfigError if it cannot be cut."""
        return self.embedding.grid(height, width)

    def token_counts(self, height: int, width: int) -> list[int]:
        """How many image tokens each block's MLP computes, for images of this size; where masks hide some, the bound.

        Raises:
          ConfigError: the reduction would leave none.
        """
        rows, columns = self.grid(height, width)
        count, blocks = rows * columns, reducing_blocks(self.reduction, self.depth)
        left = dict(zip(blocks, counts_of(self.reduction, (rows, columns), len(blocks)), strict=True))
        return [count := left.get(index, count) for index in range(self.depth)]

    def unshaped_options(self) -> dict[str, Any]:
        """Options that change the logits and show in no parameter's shape: all heads lie in one matrix."""
        fixed = self.position_embedding in ("sincos2d", "rope_axial")
        return {"heads": self.heads, **({"position_embedding": self.position_embedding} if fixed else {})}

    def fit_weights(
        self, found: dict[str, Any], expected: dict[str, Any], old_grid: tuple[int, int] | None
    ) -> tuple[dict[str, Any], str]:
        """Brings a vision transformer's weights of another form to this one's, see `vit_weights.fit_weights`."""
        return fit_weights(found, expected, old_grid, self.embedding.grid(*self.image_size))

    def _tokens_to_read(self, images: jax.Array, train: bool | None) -> Tokens:
        """The last block's tokens after LayerNorm, without those that no head reads, if that spares work."""
        return self._normed(self._run_blocks(self._embed(images, train), train, leading_alone=self.heads_read > 0))

    def _normed(self, tokens: Tokens) -> Tokens:
        return dataclasses.replace(tokens, values=self.last_norm(tokens.values), places=None)

    def _embed(self, images: jax.Array, train: bool | None) -> Tokens:
        """Images -> the first block's tokens."""
        chex.assert_shape(images, (None, None, None, 3))
        batch, height, width, _ = images.shape
        rows, columns = self.embedding.grid(height, width)
        tokens = self.embedding(images.astype(self.dtype), train=train)
        check_tokens("embedding", tokens, (batch, rows * columns, self.width), leading=0)
        front = [self.leading_tokens()] if self.heads_read else []
        front += [self.register_tokens] if self.registers else []
        if front:
            leading = jnp.broadcast_to(jnp.concatenate(front, axis=1), (batch, self.leading, self.width))
            tokens = tokens.prepend(leading.astype(self.dtype))  # [B, leading + N, D]
        tokens = dataclasses.replace(tokens, initial_grid=(rows, columns), registers=self.registers)
        if self.position_embedding in rotary.ROTARY:
            places = np.pad(rotary.grid_places((rows, columns)), ((0, 0), (self.leading, 0), (0, 0)))
            tokens = dataclasses.replace(tokens, places=jnp.asarray(places))
        else:
            tokens = tokens.with_values(tokens.values + self._positions((rows, columns)).astype(self.dtype))
        return self.dropping(tokens, train) if self.patch_dropout else tokens

    def _positions(self, grid: tuple[int, int]) -> Float[Array, "1 N D"]:
        """The position embedding of a grid; those of leading tokens come first, which registers have none of."""
        if self.position_embedding == "sincos2d":
            positions = sincos_position_embedding(grid, self.width)
            return jnp.pad(positions, ((0, 0), (self.leading, 0), (0, 0)))
        first, rest = self.learned_positions[:, : self.heads_read], self.learned_positions[:, self.heads_read :]
        rest = resize_position_embedding(rest, self.embedding.grid(*self.image_size), grid)
        none = [jnp.zeros((1, self.registers, self.width), rest.dtype)] if self.registers else []
        return jnp.concatenate([first, *none, rest], axis=1)

    def _reduction_of(self, index: int) -> Reduction | None:
        """The reduction's module that is part of a block: it acts within it, or before the next."""
        reducing, acting = index + acts_before(self.reduction), reducing_blocks(self.reduction, self.depth)
        if reducing not in acting:
            return None
        reduction: Any = self.reduction
        fields = {field.name for field in dataclasses.fields(reduction)}
        places = {"stage": acting.index(reducing), "stages": len(acting)}
        places = {name: place for name, place in places.items() if name in fields}
        return reduction.clone(parent=None, name=None, **places)

    def _run_blocks(self, tokens: Tokens, train: bool | None, leading_alone: bool = False) -> Tokens:
        """All blocks; where leading tokens alone are read, the last computes them from all as keys and values."""
        train = is_training(self, train)
        scales: Any = [None] * self.depth
        if train and self.drop_path:
            scales = drop_path_scales(self.make_rng("dropout"), self.drop_path, self.depth, tokens.shape[0])
        if self.scan_layers:
            return self._scan_blocks(tokens, scales if train and self.drop_path else None, train)
        for index, (block, block_scales) in enumerate(zip(self.blocks, scales, strict=True)):
            last_alone = leading_alone and index == self.depth - 1 and self._reduction_of(index) is None
            if last_alone:
                tokens = block(tokens.first(self.heads_read), tokens, block_scales, train)
            else:
                tokens = block(tokens, None, block_scales, train)
        return tokens

    def _scan_blocks(self, tokens: Tokens, scales: Float[Array, "depth 2 B 1 1"] | None, train: bool) -> Tokens:
        def run(block: Block, tokens: Tokens, block_scales: jax.Array | None) -> tuple[Tokens, None]:
            return block(tokens, None, block_scales, train), None

        scan = nn.scan(
            run,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.depth,
        )
        return scan(self.blocks, tokens, scales)[0]
