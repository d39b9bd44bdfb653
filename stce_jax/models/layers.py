"""The parts that models are made of: LayerNorm, MLP, attention, drop path, position embedding, convolution modules.

Shape letters: B batch, H W feature height and width, C channels, N tokens, D model width.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from stce_jax.models.ops.activations import gelu
from stce_jax.models.ops.attention import attention_weights, dot_product_attention
from stce_jax.models.ops.convolution import halving_convolution
from stce_jax.models.ops.linear import product
from stce_jax.models.ops.norms import BATCH_NORM_EPSILON, gelu_batch_norm, layer_norm
from stce_jax.models.ops.precision import widened

# DeiT's initialisation: a normal of standard deviation 0.02 cut at +-2, which is at 100 standard deviations.
truncated_normal = nn.initializers.truncated_normal(0.02, lower=-100.0, upper=100.0)
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
MOMENTUM = 0.9  # of BatchNorm; PyTorch's default, whose momentum is the new statistics' share, 0.1


class LayerNorm(nn.Module):
    """`layer_norm` with its parameters "scale" and "bias", as in flax.

    Attributes:
      dtype: dtype of the result; parameters are float32.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs):
        width = inputs.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        return layer_norm(inputs.reshape(-1, width), scale, bias, self.dtype).reshape(inputs.shape)


def _product_for_flax(inputs, kernel, *_, **__):
    """What flax.linen.Dense calls in place of `jax.lax.dot_general`."""
    return product(inputs, kernel)


def linear(features, dtype, name=None):
    """A linear layer [..., n] -> [..., features], initialised as DeiT's; parameters are float32."""
    return nn.Dense(features, dtype=dtype, kernel_init=truncated_normal, dot_general=_product_for_flax, name=name)


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
        rows = tokens.reshape(-1, width)  # [B * N, D]: see `Attention`
        hidden = linear(self.hidden, self.dtype, "in")(rows)
        hidden = nn.Dropout(self.dropout)(gelu(hidden), deterministic=not train)
        outputs = linear(width, self.dtype, "out")(hidden)
        return nn.Dropout(self.dropout)(outputs, deterministic=not train).reshape(tokens.shape)


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
    def __call__(self, tokens, *, train, count=None, wanted=None):
        """[B, N, D] -> the same for the first `wanted` tokens, or all of them: [B, wanted or N, D].

        Of the N tokens the first `count` mean something, see `dot_product_attention`.
        """
        batch, given, width = tokens.shape
        # As rows, for linear layers would otherwise have XLA for GPUs choose layouts that it must then transpose.
        rows = tokens.reshape(-1, width)  # [B * N, D]
        qkv = linear(3 * width, self.dtype, "qkv")(rows)
        # Split first: the gradient of a split is one concatenation, that of indexing three padded arrays and their sum.
        parts = jnp.split(qkv, 3, axis=-1)
        query, key, value = (part.reshape(batch, given, self.heads, -1) for part in parts)  # each [B, N, A, E]
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "attention", attention_weights(query[:, :count], key[:, :count]))
        outputs = dot_product_attention(query[:, :wanted], key, value, count).reshape(-1, width)  # as rows again
        outputs = linear(width, self.dtype, "out")(outputs)
        return nn.Dropout(self.dropout)(outputs, deterministic=not train).reshape(batch, -1, width)


def _convolve_for_flax(inputs, kernel, strides, padding, **options):
    """What flax.linen.Conv calls in place of `jax.lax.conv_general_dilated`."""
    if kernel.shape[:2] == (3, 3) and strides == (2, 2):  # `convolution` has padded by 1
        return halving_convolution(inputs, kernel)
    return jax.lax.conv_general_dilated(inputs, kernel, strides, padding, **options)


def convolution(features, kernel, stride, dtype, *, bias=True):
    """A square convolution padded alike on all sides: "SAME" would shift strided ones by half a pixel."""
    margin = kernel // 2
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=stride,
        padding=((margin, margin), (margin, margin)),
        use_bias=bias,
        kernel_init=he_normal_fan_out,
        dtype=dtype,
        conv_general_dilated=_convolve_for_flax,
        name="convolution",
    )


class GeluBatchNorm(nn.Module):
    """GELU -> BatchNorm, [B, H, W, C] -> the same shape; variables are called as those of flax.linen.BatchNorm.

    PyTorch's defaults but for the running variance: here, as in flax, it is the biased batch variance, in PyTorch the
    unbiased one, larger by n / (n - 1) with n = B * H * W.

    Attributes:
      dtype: dtype of the result; parameters and statistics are float32.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs, *, train):
        width = inputs.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (width,))
        running_variance = self.variable("batch_stats", "var", jnp.ones, (width,))
        if not train:
            activated = gelu(widened(inputs))
            inverse = jax.lax.rsqrt(running_variance.value + BATCH_NORM_EPSILON)
            return ((activated - running_mean.value) * (inverse * scale) + bias).astype(self.dtype)
        outputs, mean, variance = gelu_batch_norm(inputs, scale, bias, self.dtype)
        if not self.is_initializing():
            for running, new in ((running_mean, mean), (running_variance, variance)):
                running.value = MOMENTUM * running.value + (1.0 - MOMENTUM) * jax.lax.stop_gradient(new)
        return outputs


class ConvModule(nn.Module):
    """Eq. 1: convolution -> GELU -> BatchNorm, [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""

    features: int
    stride: int
    kernel: int = 3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs, *, train):
        outputs = convolution(self.features, self.kernel, self.stride, self.dtype)(inputs)
        return GeluBatchNorm(self.dtype, name="norm")(outputs, train=train)


class EarlyConvModule(nn.Module):
    """EarlyConv's order (Xiao et al. 2021): convolution without bias -> BatchNorm -> ReLU; shapes as `ConvModule`."""

    features: int
    stride: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs, *, train):
        outputs = convolution(self.features, 3, self.stride, self.dtype, bias=False)(inputs)
        norm = nn.BatchNorm(
            use_running_average=not train, momentum=MOMENTUM, epsilon=BATCH_NORM_EPSILON, dtype=self.dtype, name="norm"
        )
        return nn.relu(norm(outputs))
