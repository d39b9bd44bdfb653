"""The transformer's parts that no paper of ours changes: attention, MLP, drop path, position embedding.

Shape letters: B batch, N tokens, D model width, A attention heads, E width of a head.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

# DeiT's initialisation: a normal of standard deviation 0.02 cut at +-2, which is at 100 standard deviations.
truncated_normal = nn.initializers.truncated_normal(0.02, lower=-100.0, upper=100.0)


@jax.custom_vjp
def normalize(inputs):
    """Zero mean and unit variance over the last axis, [..., D] -> [..., D], with the ViT's epsilon of 1e-6.

    The variance comes from differences to the mean: flax's default, the mean of squares minus the squared mean, loses
    every digit on a patch of one colour. The gradient is written out because XLA's own, for this form, recomputes the
    mean in every use and takes 1.7 times as long for a whole training step of ViT-S on a CPU.
    """
    return _normalize_forward(inputs)[0]


def _normalize_forward(inputs):
    centered = inputs - inputs.mean(axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.square(centered).mean(axis=-1, keepdims=True) + 1e-6)  # [..., 1]
    outputs = centered * scale
    return outputs, (outputs, scale)


def _normalize_backward(saved, cotangent):
    outputs, scale = saved
    along = (cotangent * outputs).mean(axis=-1, keepdims=True)
    return (scale * (cotangent - cotangent.mean(axis=-1, keepdims=True) - outputs * along),)


normalize.defvjp(_normalize_forward, _normalize_backward)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis, computed in float32 at least; parameters "scale" and "bias" as in flax.

    Attributes:
      dtype: dtype of the result; parameters are float32.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs):
        width = inputs.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        inputs = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
        return (normalize(inputs) * scale + bias).astype(self.dtype)


def gelu(inputs):
    """The exact GELU, x * Phi(x), by the error function."""
    return nn.gelu(inputs, approximate=False)


def dot_product_attention(query, key, value):
    """Exact softmax attention.

    The product with `value` comes before the normalisation: N x E numbers are divided instead of N x N.

    Args:
      query, key, value: [B, A, N, E], one dtype.

    Returns:
      (outputs, weights): outputs [B, A, N, E] in the inputs' dtype; weights [B, A, N, N] float32 or wider, each row
      summing to one.
    """
    scale = np.sqrt(query.shape[-1]).item()
    accumulate = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("bane,bame->banm", query / scale, key, preferred_element_type=accumulate)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1, keepdims=True)  # [B, A, N, 1]
    outputs = jnp.einsum("banm,bame->bane", weights.astype(value.dtype), value, preferred_element_type=accumulate)
    return (outputs / total).astype(value.dtype), weights / total


class Attention(nn.Module):
    """Multi-head self-attention, [B, N, D] -> [B, N, D]; sows the weights [B, A, N, N] as "attention".

    Attributes:
      heads: number of heads; must divide D.
      dropout: rate on the output, 0..1.
      dtype: dtype of the computation; parameters are float32.
    """

    heads: int
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens, *, train):
        batch, count, width = tokens.shape
        qkv = nn.Dense(3 * width, dtype=self.dtype, kernel_init=truncated_normal, name="qkv")(tokens)
        qkv = qkv.reshape(batch, count, 3, self.heads, width // self.heads)  # [B, N, 3, A, E]
        query, key, value = qkv.transpose(2, 0, 3, 1, 4)  # each [B, A, N, E]
        outputs, weights = dot_product_attention(query, key, value)
        self.sow("intermediates", "attention", weights)
        outputs = outputs.transpose(0, 2, 1, 3).reshape(batch, count, width)  # [B, N, D]
        outputs = nn.Dense(width, dtype=self.dtype, kernel_init=truncated_normal, name="out")(outputs)
        return nn.Dropout(self.dropout)(outputs, deterministic=not train)


class MLP(nn.Module):
    """Two linear layers with a GELU between, [B, N, D] -> [B, N, D].

    Attributes:
      hidden: width between the two.
      dropout: rate after each, 0..1.
      dtype: dtype of the computation; parameters are float32.
    """

    hidden: int
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens, *, train):
        width = tokens.shape[-1]
        hidden = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=truncated_normal, name="in")(tokens)
        hidden = nn.Dropout(self.dropout)(gelu(hidden), deterministic=not train)
        outputs = nn.Dense(width, dtype=self.dtype, kernel_init=truncated_normal, name="out")(hidden)
        return nn.Dropout(self.dropout)(outputs, deterministic=not train)


def drop_path_scales(key, rate, depth, batch):
    """What stochastic depth multiplies each residual branch with: 0 where it drops it, 1 / (1 - its rate) elsewhere.

    Source: Huang et al. 2016; the rate grows linearly with depth as in DeiT. Drawn for all blocks at once, so that
    blocks in a loop and blocks in a scan see the same draws.

    Args:
      key: PRNG key.
      rate: the last block's rate, 0 <= rate < 1; the first block's is 0.
      depth, batch: numbers of blocks and of images.

    Returns:
      [depth, 2, B, 1, 1] float32, for the attention and the MLP branch of each block.
    """
    keep = 1.0 - np.linspace(0.0, rate, depth, dtype=np.float32).reshape(depth, 1, 1, 1, 1)
    return jax.random.bernoulli(key, keep, (depth, 2, batch, 1, 1)) / keep


def sincos_position_embedding(grid, width):
    """The fixed two-dimensional sine-cosine position embedding of MoCo v3 (Chen et al. 2021).

    Args:
      grid: (rows, columns) of tokens.
      width: D, a multiple of 4.

    Returns:
      [1, rows * columns, D] float32 in -1..1: sines and cosines of the column, then of the row.
    """
    frequency = 1.0 / 10000.0 ** (np.arange(width // 4) / (width // 4))  # [D/4]
    row, column = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    angles = [position.reshape(-1, 1) * frequency for position in (column, row)]  # each [N, D/4]
    parts = [function(angle) for angle in angles for function in (np.sin, np.cos)]
    return np.concatenate(parts, axis=1)[None].astype(np.float32)


def resize_position_embedding(embedding, old_grid, new_grid):
    """Resamples [1, rows * columns, D] position embeddings to another grid (bicubic, antialiased)."""
    if old_grid == new_grid:
        return embedding
    width = embedding.shape[-1]
    image = embedding.reshape(1, *old_grid, width)  # [1, rows, columns, D]
    image = jax.image.resize(image, (1, *new_grid, width), method="bicubic")
    return image.reshape(1, new_grid[0] * new_grid[1], width)
