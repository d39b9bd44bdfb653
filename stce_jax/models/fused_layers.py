"""Layers of a plain block in forms that wait to be measured on GPUs; `ops.forms` says which, and who gets them.

Each has the variables of the layer that it stands for, and computes the same up to rounding, on every device.

Shape letters: B batch, N tokens, R rows, D model width.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.models.layers import MLP, is_training, truncated_normal
from stce_jax.models.ops.attention import TOKENS_MULTIPLE
from stce_jax.models.ops.fused import bias_gelu, padded_attention, residual_layer_norm
from stce_jax.models.ops.linear import product
from stce_jax.models.ops.norms import LAYER_NORM_EPSILON
from stce_jax.models.tokens import Tokens


class LinearWeights(nn.Module):
    """The kernel and the bias of a layer that `linear` would make; attributes are that layer's."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, width: int) -> tuple[Float[Array, "n m"], Float[Array, "m"]]:
        kernel = self.param("kernel", truncated_normal, (width, self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return kernel.astype(self.dtype), bias.astype(self.dtype)


class ResidualLayerNorm(nn.Module):
    """A residual sum and the LayerNorm after it, in one pass on GPUs; attributes are those of `LayerNorm`."""

    dtype: jnp.dtype = jnp.float32
    epsilon: float = LAYER_NORM_EPSILON

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "R D"], branch: Float[Array, "R D"]
    ) -> tuple[Float[Array, "R D"], Float[Array, "R D"]]:
        """(inputs + branch, the norm of that)."""
        width = inputs.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (width,), jnp.float32)
        return residual_layer_norm(inputs, branch, scale, bias, self.dtype, self.epsilon)


class FusedMLP(MLP):
    """`MLP` with the GELU, in which the bias before it and the GELU are one pass on GPUs."""

    def wide(self, rows: Float[Array, "R D"], may_wait: bool) -> tuple[Float[Array, "R hidden"], bool]:
        del may_wait
        kernel, bias = LinearWeights(self.hidden, self.dtype, name="in")(rows.shape[-1])
        return bias_gelu(product(rows.astype(self.dtype), kernel, True), bias), False


class PaddedAttention(nn.Module):
    """`Attention` of tokens to themselves, which pads them before the products and not before the attention.

    So what the products give is not cut, padded and cut again: it is the fused kernel's input. Padded queries are
    computed like others, and then left out; padded keys are hidden. Queries, keys and values have a product each, and
    only the queries a bias. A key's bias adds one number to all logits of a query, which the softmax takes off again; a
    value's is added to each output, and so its product to the bias of the output layer.

    Attributes: those of `Attention`, of which it has no others.
    """

    heads: int
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: Tokens, train: bool | None = None) -> Float[Array, "B N D"]:
        batch, count, width = tokens.shape
        padded = -(-count // TOKENS_MULTIPLE) * TOKENS_MULTIPLE
        values = jnp.pad(tokens.values, ((0, 0), (0, padded - count), (0, 0)))
        rows = values.reshape(-1, width).astype(self.dtype)  # [B padded, D]
        kernel, bias = LinearWeights(3 * width, self.dtype, name="qkv")(width)
        query, key, value = (product(rows, own, True) for own in jnp.split(kernel, 3, axis=1))
        query_bias, _, value_bias = jnp.split(bias, 3)
        heads = (batch, padded, self.heads, width // self.heads)
        query, key, value = (own.reshape(heads) for own in (query + query_bias, key, value))
        outputs = padded_attention(query, key, value, count).reshape(-1, width)
        kernel, bias = LinearWeights(width, self.dtype, name="out")(width)
        outputs = product(outputs, kernel, True).reshape(batch, padded, width)[:, :count] + (value_bias @ kernel + bias)
        return nn.Dropout(self.dropout)(outputs, deterministic=not is_training(self, train))


def is_plain(tokens: Tokens) -> bool:
    """Whether attention between tokens needs nothing but them, as `PaddedAttention` has it."""
    weighted = tokens.sizes is not None and tokens.proportional
    return not weighted and tokens.mask is None and tokens.policy is None
