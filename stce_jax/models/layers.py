"""Small linen modules, as a paper draws them; what they compute is in `ops`.

Shape letters: B batch, N tokens (M of them queries), D model width, A attention heads, E width of a head, H W feature
height and width, C channels.
"""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Key

from stce_jax.models.ops import rotary
from stce_jax.models.ops.activations import gelu, silu_gate
from stce_jax.models.ops.attention import attention_weights, dot_product_attention, policy_weights, weighted_sum
from stce_jax.models.ops.linear import activated_product, product
from stce_jax.models.ops.norms import LAYER_NORM_EPSILON, layer_norm, rms_norm
from stce_jax.models.tokens import Tokens

# DeiT's initialisation: a normal of standard deviation 0.02 cut at +-2, which is at 100 standard deviations.
truncated_normal = nn.initializers.truncated_normal(0.02, lower=-100.0, upper=100.0)


def is_training(module: nn.Module, train: bool | None) -> bool:
    """`train` as a Python bool, which decides what is computed. While variables are made, both make the same.

    Raises:
      TypeError: it is missing or traced, as flax's transforms and jit leave it if they are not told otherwise.
    """
    if train is not None and not isinstance(train, jax.core.Tracer):
        return bool(train)
    if module.is_initializing():
        return False
    if train is None:
        raise TypeError("train is missing: give True or False, by position in nn.vmap and nn.scan, which drop keywords")
    raise TypeError(
        "train is traced, and must be True or False: give it by position, and its place to the transform, such as "
        "nn.remat(..., static_argnums=(2,)); with jax.jit, static_argnames='train'"
    )


def sow_scalar(module: nn.Module, collection: str, name: str, value: Float[Array, "..."]) -> None:
    """Leaves a number for the training loss ("losses", a scalar) or for the log ("metrics", [B])."""
    if not module.is_initializing():  # or it would be a variable of the model
        module.sow(collection, name, value, init_fn=lambda: 0.0, reduce_fn=lambda _, new: new)


def linear(features: int, dtype: Any, name: str | None = None, *, activated: bool = False, **options: Any) -> nn.Dense:
    """A linear layer [..., n] -> [..., features], initialised as DeiT's unless `options` of flax.linen.Dense differ.

    Where `activated` says so, its inputs pass the exact GELU first.
    """
    options = {"kernel_init": truncated_normal, "use_bias": True, **options}

    def dot_general(inputs: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
        return (activated_product if activated else product)(inputs, kernel, options["use_bias"])

    return nn.Dense(features, dtype=dtype, dot_general=dot_general, name=name, **options)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis.

    Attributes:
      dtype: dtype of the result; parameters are float32.
      epsilon: added to the variance; by default the ViT's 1e-6.
    """

    dtype: jnp.dtype = jnp.float32
    epsilon: float = LAYER_NORM_EPSILON

    @nn.compact
    def __call__(self, inputs: Float[Array, "... D"]) -> Float[Array, "... D"]:
        width = inputs.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (width,), jnp.float32)
        return layer_norm(inputs.reshape(-1, width), scale, bias, self.dtype, self.epsilon).reshape(inputs.shape)


class RMSNorm(nn.Module):
    """RMSNorm over the last axis (Zhang and Sennrich 2019, arXiv 1910.07467): a scale, no mean and no bias.

    Attributes: those of `LayerNorm`; the epsilon is added to the mean of squares.
    """

    dtype: jnp.dtype = jnp.float32
    epsilon: float = LAYER_NORM_EPSILON

    @nn.compact
    def __call__(self, inputs: Float[Array, "... D"]) -> Float[Array, "... D"]:
        width = inputs.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,), jnp.float32)
        return rms_norm(inputs.reshape(-1, width), scale, self.dtype, self.epsilon).reshape(inputs.shape)


NORMS: dict[str, Any] = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}  # of plain blocks, by the option `norm`


class MLP(nn.Module):
    """Two linear layers with a GELU between.

    Attributes:
      hidden: width between the two.
      dropout: rate after each, 0..1.
      dtype: dtype of the computation; parameters are float32.
      activation: what stands between; None: the exact GELU.
    """

    hidden: int
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    activation: Callable[[Float[Array, "*axes"]], Float[Array, "*axes"]] | None = None

    @nn.compact
    def __call__(self, values: Float[Array, "B N D"], train: bool | None = None) -> Float[Array, "B N D"]:
        width, deterministic = values.shape[-1], not is_training(self, train)
        rows = values.reshape(-1, width)  # [B N, D]: see `Attention`
        hidden, waits = self.wide(rows, deterministic or not self.dropout)
        hidden = nn.Dropout(self.dropout)(hidden, deterministic=deterministic)
        outputs = linear(width, self.dtype, "out", activated=waits)(hidden)
        return nn.Dropout(self.dropout)(outputs, deterministic=deterministic).reshape(values.shape)

    def wide(self, rows: Float[Array, "R D"], may_wait: bool) -> tuple[Float[Array, "R hidden"], bool]:
        """The first layer and the activation, of R = B N rows; and whether a GELU waits for the second, if it may."""
        hidden = linear(self.hidden, self.dtype, "in")(rows)
        if may_wait and self.activation is None:
            return hidden, True
        return (self.activation or gelu)(hidden), False


class SwiGLU(nn.Module):
    """A gated MLP, SiLU(x W + b) * (x V + c) and a linear layer (Shazeer 2020, arXiv 2002.05202).

    It has as many parameters as an `MLP` of this `hidden`, but for rounding, as in DINOv2 (Oquab et al. 2023): see
    `gated_width`. "in" holds W and V, one behind the other, as DINOv2's w12.

    Attributes: those of `MLP`.
    """

    hidden: int
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, values: Float[Array, "B N D"], train: bool | None = None) -> Float[Array, "B N D"]:
        width, deterministic = values.shape[-1], not is_training(self, train)
        both = linear(2 * gated_width(self.hidden), self.dtype, "in")(values.reshape(-1, width))
        hidden = nn.Dropout(self.dropout)(silu_gate(*jnp.split(both, 2, axis=-1)), deterministic=deterministic)
        outputs = linear(width, self.dtype, "out")(hidden)
        return nn.Dropout(self.dropout)(outputs, deterministic=deterministic).reshape(values.shape)


def gated_width(hidden: int) -> int:
    """The width of a gated MLP in place of a plain one: two thirds, rounded up to a multiple of 8 (DINOv2's rule)."""
    return -(-max(1, 2 * hidden // 3) // 8) * 8


MLPS: dict[str, Any] = {"gelu": MLP, "swiglu": SwiGLU}  # of plain blocks, by the option `mlp`


class Attention(nn.Module):
    """Multi-head attention; sows its weights [B, A, M, N] as "attention".

    Attributes:
      heads: number of heads; must divide D.
      dropout: rate on the output, 0..1.
      dtype: dtype of the computation; parameters are float32.
      qk_norm: a name of `NORMS`: queries and keys of each head are normed, with a learned scale that all heads share
        (Dehghani et al. 2023, ViT-22B, as timm has it); "": they are not.
      rotary: a name of `ops.rotary.ROTARY`: queries and keys, normed or not, are then turned by the tokens' `places`,
        with the learned "frequencies" [2, A, E / 2] of "rope_mixed" or fixed ones; "": they are not.
      epsilon: of the norms of queries and keys.
    """

    heads: int
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    qk_norm: str = ""
    rotary: str = ""
    epsilon: float = LAYER_NORM_EPSILON

    @nn.compact
    def __call__(
        self, tokens: Tokens, context: Tokens | None = None, train: bool | None = None, give: Collection[str] = ()
    ) -> tuple[Float[Array, "B M D"], dict[str, Float[Array, "..."]]]:
        """Attention of tokens to a context, by default to themselves.

        Tokens that are not real (`mask`) are seen by none. A token that stands for several (`sizes`) counts that many
        times: the proportional attention of ToMe (Bolya et al. 2023), unless the tokens say otherwise (`proportional`).
        Where tokens are live in part (`policy`), it is `ops.attention.policy_attention`.

        Args:
          tokens: the M queries.
          context: the N tokens that are keys and values.
          give: names of what to return besides: "query", "key", "value" ([B, N, A, E]), "weights" ([B, A, M, N]).

        Returns:
          (the branch that a block adds, {name: array} of what was to be given).
        """
        width = tokens.shape[-1]
        qkv = linear(3 * width, self.dtype, "qkv")
        query, key, value = self._heads(qkv, tokens.values)
        if context is None:
            context = tokens
        else:
            _, key, value = self._heads(qkv, context.values)
        if self.qk_norm:
            query = NORMS[self.qk_norm](self.dtype, self.epsilon, name="query_norm")(query)
            key = NORMS[self.qk_norm](self.dtype, self.epsilon, name="key_norm")(key)
        if self.rotary:
            frequencies = self._frequencies(query.shape[-1])
            query = rotary.rotate(query, rotary.rotation_angles(_places(tokens), frequencies))
            key = rotary.rotate(key, rotary.rotation_angles(_places(context), frequencies))
        bias = None
        if context.sizes is not None and context.proportional:
            bias = jnp.log(context.sizes)[:, None, None, :]  # [B, 1, 1, N]
        given = {"query": query, "key": key, "value": value}
        if context.policy is not None:
            given["weights"] = policy_weights(query, key, context.policy, bias=bias, mask=context.mask)
        elif "weights" in give or self.is_mutable_collection("intermediates"):
            given["weights"] = attention_weights(query, key, bias=bias, mask=context.mask)  # [B, A, M, N]
        if "weights" in given:
            self.sow("intermediates", "attention", given["weights"])
        if "weights" in give or context.policy is not None:
            outputs = weighted_sum(given["weights"], value)
        else:
            outputs = dot_product_attention(query, key, value, bias=bias, mask=context.mask)
        rows = linear(width, self.dtype, "out")(outputs.reshape(-1, width))  # [B M, D]
        outputs = nn.Dropout(self.dropout)(rows, deterministic=not is_training(self, train)).reshape(tokens.shape)
        return outputs, {name: given[name] for name in give}

    def _frequencies(self, width: int) -> Any:
        """Those of the rotary positions of heads of this width, [2, A or 1, E / 2]."""
        if self.rotary == "rope_mixed":
            return self.param("frequencies", rotary.mixed_frequencies, (2, self.heads, width // 2), jnp.float32)
        return rotary.axial_frequencies(width)

    def _heads(self, qkv: nn.Dense, values: Float[Array, "B N D"]) -> list[Float[Array, "B N A E"]]:
        """Query, key and value of tokens."""
        batch, count, width = values.shape
        # As rows, for linear layers would otherwise have XLA for GPUs choose layouts that it must then transpose.
        rows = qkv(values.reshape(-1, width))  # [B N, 3 D]
        # Split first: the gradient of a split is one concatenation, that of indexing three padded arrays and their sum.
        return [part.reshape(batch, count, self.heads, width // self.heads) for part in jnp.split(rows, 3, axis=-1)]


def _places(tokens: Tokens) -> Float[Array, "B N 2"]:
    assert tokens.places is not None, "rotary positions need tokens that know their places; see Tokens"
    return tokens.places


def drop_path_scales(key: Key[Array, ""], rate: float, depth: int, batch: int) -> Float[Array, "depth 2 B 1 1"]:
    """What stochastic depth multiplies each residual branch with: 0 where it drops it, 1 / (1 - its rate) elsewhere.

    Source: Huang et al. 2016; the rate grows linearly with depth as in DeiT. Drawn for all blocks at once, so that
    blocks in a loop and blocks in a scan see the same draws.

    Args:
      key: PRNG key.
      rate: the last block's rate, 0 <= rate < 1; the first block's is 0.
      depth: number of blocks.
      batch: number of images.

    Returns:
      float32, for the attention and the MLP branch of each block.
    """
    keep = 1.0 - np.linspace(0.0, rate, depth, dtype=np.float32).reshape(depth, 1, 1, 1, 1)
    return jax.random.bernoulli(key, keep, (depth, 2, batch, 1, 1)).astype(keep.dtype) / keep
