"""The plain pre-norm block of a vision transformer, with room for a token reduction.

Shape letters: B batch, N tokens, R = B N rows, D model width.
"""

import dataclasses
from collections.abc import Collection

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.errors import ConfigError
from stce_jax.models.conv_layers import LayerScale
from stce_jax.models.fused_layers import FusedMLP, PaddedAttention, ResidualLayerNorm, is_plain
from stce_jax.models.layers import MLPS, NORMS, Attention
from stce_jax.models.ops.forms import chosen
from stce_jax.models.ops.norms import LAYER_NORM_EPSILON
from stce_jax.models.reductions import Reduction, acts_before
from stce_jax.models.tokens import Tokens, check_tokens


class Block(nn.Module):
    """A pre-norm transformer block: attention, a token reduction if there is one, MLP.

    Attributes:
      heads, mlp_dim, dropout, dtype: see `VisionTransformer`.
      reduction: a module of `reductions` that acts within this block, or one that acts before the next, or None.
      epsilon: of all norms.
      norm_kind, mlp_kind: names in `layers.NORMS` and `layers.MLPS`.
      layer_scale: what both branches are first multiplied by, each channel with a learned factor of its own; 0: none.
      qk_norm: whether queries and keys are normed, as the block's tokens are.
      rotary: see `layers.Attention`.
    """

    heads: int
    mlp_dim: int
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    reduction: Reduction | None = None
    epsilon: float = LAYER_NORM_EPSILON
    norm_kind: str = "layernorm"
    mlp_kind: str = "gelu"
    layer_scale: float = 0.0
    qk_norm: bool = False
    rotary: str = ""

    @nn.compact
    def __call__(
        self,
        tokens: Tokens,
        context: Tokens | None,
        scales: Float[Array, "2 B 1 1"] | None,
        train: bool,
    ) -> Tokens:
        """Computes tokens that attend to a context, by default to themselves.

        Args:
          tokens: those that are computed.
          context: those that they attend to, before this block; None: themselves.
          scales: what multiplies the two residual branches (stochastic depth); None leaves them as they are.
          train: whether dropout acts.
        """
        norm = NORMS[self.norm_kind](self.dtype, self.epsilon, name="attention_norm")
        if context is not None:
            context = context.with_values(norm(context.values))
        rows = _rows(tokens.values)
        normed = tokens.with_values(norm(rows).reshape(tokens.shape))
        needs = () if self.reduction is None else self.reduction.needs
        branch, given = self._attend(normed, context, needs, train)
        added = _rows(_dropped(self._scaled(branch, "attention_scale"), scales, 0))
        before_next = acts_before(self.reduction)
        within = self.reduction is not None and not before_next
        if chosen("residual_norm") and self.norm_kind == "layernorm" and not within:
            rows, mlp_inputs = ResidualLayerNorm(self.dtype, self.epsilon, name="mlp_norm")(rows, added)
        else:
            rows = rows + added
            if within:
                tokens = self._reduce(tokens.with_values(rows.reshape(tokens.shape)), given, train)
                rows = _rows(tokens.values)
            mlp_inputs = NORMS[self.norm_kind](self.dtype, self.epsilon, name="mlp_norm")(rows)
        fused = chosen("bias_gelu") and self.mlp_kind == "gelu"
        mlp = (FusedMLP if fused else MLPS[self.mlp_kind])(self.mlp_dim, self.dropout, self.dtype, name="mlp")
        branch = mlp(mlp_inputs.reshape(tokens.shape), train=train)
        added = _rows(_dropped(self._scaled(branch, "mlp_scale"), scales, 1))
        tokens = tokens.with_values((rows + added).reshape(tokens.shape))
        return self._reduce(tokens, given, train) if before_next else tokens

    def _attend(
        self, tokens: Tokens, context: Tokens | None, needs: Collection[str], train: bool
    ) -> tuple[Float[Array, "B N D"], dict[str, jax.Array]]:
        """See `layers.Attention`."""
        plain = is_plain(tokens) and not (self.qk_norm or self.rotary or needs)
        if chosen("padded_attention") and plain and context is None and not self.is_mutable_collection("intermediates"):
            return PaddedAttention(self.heads, self.dropout, self.dtype, name="attention")(tokens, train=train), {}
        attention = Attention(
            self.heads,
            self.dropout,
            self.dtype,
            qk_norm=self.norm_kind if self.qk_norm else "",
            rotary=self.rotary,
            epsilon=self.epsilon,
            name="attention",
        )
        return attention(tokens, context, train=train, give=needs)

    def _scaled(self, branch: jax.Array, name: str) -> jax.Array:
        return LayerScale(self.layer_scale, self.dtype, name=name)(branch) if self.layer_scale else branch

    def _reduce(self, tokens: Tokens, given: dict[str, jax.Array], train: bool) -> Tokens:
        assert self.reduction is not None
        reduced = self.reduction(tokens, given, train=train)
        check_tokens("reduction", reduced, (tokens.shape[0], None, tokens.shape[2]), leading=tokens.leading)
        if tokens.places is not None and (reduced.places is None or reduced.places.shape[1] != reduced.shape[1]):
            raise ConfigError("the reduction gives no place for each token, which rotary positions need; see Tokens")
        return dataclasses.replace(reduced, initial_grid=tokens.initial_grid, registers=tokens.registers)


def _rows(values: Float[Array, "B N D"]) -> Float[Array, "R D"]:
    """As rows, in which residual sums are made and their gradients added.

    Made as [B, N, D], XLA for GPUs stores them with the batch innermost, for the class token's sake, and transposes
    them for every product.
    """
    return values.reshape(-1, values.shape[-1])


def _dropped(branch: Float[Array, "B N D"], scales: jax.Array | None, index: int) -> Float[Array, "B N D"]:
    """A residual branch under stochastic depth."""
    return branch if scales is None else branch * scales[index].astype(branch.dtype)
