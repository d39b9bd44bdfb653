"""The vision transformer that every embedding is put before: ViT-S as EarlyConv and the STCE paper use it.

Shape letters: B batch, H W image height and width, N tokens, D model width.
"""

import chex
import jax.numpy as jnp
from flax import linen as nn

from stce_jax.models.layers import (
    MLP,
    Attention,
    LayerNorm,
    drop_path_scales,
    linear,
    resize_position_embedding,
    sincos_position_embedding,
    truncated_normal,
)
from stce_jax.models.ops.attention import padding


class Block(nn.Module):
    """A pre-norm transformer block, [B, N, D] -> ([B, N, D], None): the body of a loop or of a scan.

    Of the N tokens the first `count` mean something; None: all of them. Of those the first `wanted` alone are computed
    and returned, from all that mean something; None: all N.

    `scales` [2, B, 1, 1] multiplies the two residual branches (stochastic depth); None leaves them as they are.
    """

    heads: int
    mlp_dim: int
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens, scales, train, count=None, wanted=None):
        normed = LayerNorm(self.dtype, name="attention_norm")(tokens)
        attention = Attention(self.heads, self.dropout, self.dtype, name="attention")
        branch = attention(normed, train=train, count=count, wanted=wanted)
        tokens = tokens[:, :wanted] + (branch if scales is None else branch * scales[0].astype(branch.dtype))
        normed = LayerNorm(self.dtype, name="mlp_norm")(tokens)
        branch = MLP(self.mlp_dim, self.dropout, self.dtype, name="mlp")(normed, train=train)
        tokens = tokens + (branch if scales is None else branch * scales[1].astype(branch.dtype))
        return tokens, None


class VisionTransformer(nn.Module):
    """A vision transformer over any embedding, images [B, H, W, 3] -> logits [B, classes], float32.

    Images of another size than `image_size` work too: the position embedding follows their grid.

    Attributes:
      embedding: linen module, images -> tokens [B, N, D], with a method `grid(height, width)`.
      num_classes: classes of the linear head; 0 leaves the head out and returns the pooled features [B, D].
      image_size: (height, width) in pixels for which the learned position embedding is made.
      width, depth, heads, mlp_dim: D, number of blocks, attention heads, hidden width of the MLPs.
      pooling: "class" reads a class token; "mean" averages the tokens and has no class token.
      position_embedding: "learned", or the fixed "sincos2d".
      drop_path: stochastic depth rate of the last block, 0 <= rate < 1; needs the rng "dropout" in training.
      dropout: rate in attention outputs and MLPs, 0 <= rate < 1.
      dtype: dtype of the computation; parameters are float32.
      remat: recompute each block in the backward pass instead of keeping its activations.
      scan_layers: one compiled block run `depth` times over stacked parameters [depth, ...]; compiles faster, but the
        last block then computes all tokens even where the class token alone is read.
    """

    embedding: nn.Module
    num_classes: int
    image_size: tuple[int, int] = (224, 224)
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_dim: int = 1152
    pooling: str = "class"
    position_embedding: str = "learned"
    drop_path: float = 0.0
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    scan_layers: bool = False

    def setup(self):
        block = nn.remat(Block, static_argnums=(3, 4, 5), prevent_cse=not self.scan_layers) if self.remat else Block
        options = {"heads": self.heads, "mlp_dim": self.mlp_dim, "dropout": self.dropout, "dtype": self.dtype}
        if self.scan_layers:
            scan = nn.scan(
                block,
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
                length=self.depth,
            )
            self.blocks = scan(**options)
        else:
            self.blocks = [block(**options) for _ in range(self.depth)]
        if self.pooling == "class":
            self.class_token = self.param("class_token", truncated_normal, (1, 1, self.width))
        if self.position_embedding == "learned":
            rows, columns = self.embedding.grid(*self.image_size)
            count = rows * columns + (self.pooling == "class")
            self.learned_positions = self.param("position_embedding", truncated_normal, (1, count, self.width))
        self.norm = LayerNorm(self.dtype)
        if self.num_classes:
            self.head = linear(self.num_classes, self.dtype)

    def __call__(self, images, *, train):
        """images [B, H, W, 3], normalised -> logits [B, classes] (or features [B, D] without classes), float32."""
        # Where the head reads the class token alone, the others are but keys and values to it in the last block.
        tokens = self._tokens(images, train, wanted=1 if self.pooling == "class" else None)
        features = tokens[:, 0] if self.pooling == "class" else tokens.mean(axis=1)  # [B, D]
        outputs = self.head(features) if self.num_classes else features
        return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))

    def tokens(self, images, *, train):
        """images [B, H, W, 3], normalised -> the last block's tokens after LayerNorm [B, N, D], class token first."""
        return self._tokens(images, train)

    def _tokens(self, images, train, wanted=None):
        """As `tokens`, or only the first of them, at least `wanted`."""
        chex.assert_shape(images, (None, None, None, 3))
        batch, height, width, _ = images.shape
        tokens = self.embedding(images.astype(self.dtype), train=train)  # [B, N, D]
        rows, columns = self.embedding.grid(height, width)
        chex.assert_shape(tokens, (batch, rows * columns, self.width))
        if self.pooling == "class":
            class_tokens = jnp.broadcast_to(self.class_token, (batch, 1, self.width)).astype(self.dtype)
            tokens = jnp.concatenate([class_tokens, tokens], axis=1)  # [B, 1 + N, D]
        tokens = tokens + self._positions((rows, columns)).astype(self.dtype)
        return self.norm(self._run_blocks(tokens, train, wanted))

    def _positions(self, grid):
        """The position embedding of a grid, [1, N, D]; the class token's, where there is one, comes first."""
        prefix = int(self.pooling == "class")
        if self.position_embedding == "sincos2d":
            positions = sincos_position_embedding(grid, self.width)
            return jnp.pad(positions, ((0, 0), (prefix, 0), (0, 0)))
        first, rest = self.learned_positions[:, :prefix], self.learned_positions[:, prefix:]
        rest = resize_position_embedding(rest, self.embedding.grid(*self.image_size), grid)
        return jnp.concatenate([first, rest], axis=1)

    def _run_blocks(self, tokens, train, wanted):
        batch, count, _ = tokens.shape
        scales = [None] * self.depth
        if train and self.drop_path:
            scales = drop_path_scales(self.make_rng("dropout"), self.drop_path, self.depth, batch)
        extra = padding(count, self.heads, self.width, self.dtype)
        tokens = jnp.pad(tokens, ((0, 0), (0, extra), (0, 0))) if extra else tokens
        if self.scan_layers:
            tokens, _ = self.blocks(tokens, None if scales[0] is None else scales, train, count, None)
        else:
            wanted_of_each = [None] * (self.depth - 1) + [wanted]
            for block, block_scales, wanted_of_it in zip(self.blocks, scales, wanted_of_each, strict=True):
                tokens, _ = block(tokens, block_scales, train, count, wanted_of_it)
        return tokens[:, :count]
