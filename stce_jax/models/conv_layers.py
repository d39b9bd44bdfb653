"""Small linen modules on feature maps, of bodies that put convolutions and attention together.

Source: SViT (Huang et al. 2023, arXiv 2211.11167) and its published code.

Shape letters: B batch, H W feature height and width, h w half of them rounded up, C channels.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.models.layers import BATCH_NORM_MOMENTUM, convolution, is_training, linear
from stce_jax.models.ops.activations import gelu
from stce_jax.models.ops.convolution import depthwise_convolution
from stce_jax.models.ops.norms import BATCH_NORM_EPSILON
from stce_jax.models.ops.precision import of_rank


def uniform_initializers(fan_in: int) -> dict[str, Any]:
    """PyTorch's default for convolutions: kernel and bias uniform in +-1 / sqrt(fan_in)."""
    bound = fan_in**-0.5

    def draw(key: Array, shape: Any, dtype: Any = jnp.float32, **_: Any) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return {"kernel_init": draw, "bias_init": draw}


def batch_norm(dtype: Any, axis_name: Any = None, name: str | None = None) -> nn.BatchNorm:
    """BatchNorm with PyTorch's defaults; `use_running_average` comes with the call.

    The running variance is the biased batch variance, as in flax; see `layers.GeluBatchNorm`.
    """
    return nn.BatchNorm(
        axis_name=axis_name, momentum=BATCH_NORM_MOMENTUM, epsilon=BATCH_NORM_EPSILON, dtype=dtype, name=name
    )


class DepthwiseResidual(nn.Module):
    """x + depthwise 3x3 convolution of x, [B, H, W, C] -> [B, H, W, C]: SViT's conditional positions.

    Attributes:
      dtype: dtype of the computation; parameters are float32.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        channels, initializers = inputs.shape[-1], uniform_initializers(9)
        kernel = self.param("kernel", initializers["kernel_init"], (3, 3, 1, channels), jnp.float32)
        bias = self.param("bias", initializers["bias_init"], (channels,), jnp.float32)
        inputs, kernel, bias = (array.astype(self.dtype) for array in (inputs, kernel, bias))
        return inputs + (depthwise_convolution(inputs, kernel) + of_rank(4, bias))


class ConvFFN(nn.Module):
    """1x1 convolution, GELU, `DepthwiseResidual` of the hidden map, 1x1 convolution: [B, H, W, C] -> [B, H, W, C].

    Attributes:
      hidden: channels of the hidden map.
      dtype: dtype of the computation; parameters are float32.
    """

    hidden: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        batch, height, width, channels = inputs.shape
        rows = inputs.reshape(-1, channels)  # [B H W, C], as rows for linear layers: see `layers.Attention`
        hidden = gelu(linear(self.hidden, self.dtype, "in", **uniform_initializers(channels))(rows))
        hidden = DepthwiseResidual(self.dtype, name="depthwise")(hidden.reshape(batch, height, width, self.hidden))
        rows = hidden.reshape(-1, self.hidden)  # [B H W, hidden]
        outputs = linear(channels, self.dtype, "out", **uniform_initializers(self.hidden))(rows)
        return outputs.reshape(inputs.shape)


class ConvMerging(nn.Module):
    """3x3 convolution of stride 2 -> BatchNorm, no activation: [B, H, W, C] -> [B, h, w, features].

    Attributes:
      features: channels of the result.
      dtype: dtype of the computation; parameters and statistics are float32.
      axis_name: of BatchNorm's statistics, see `layers.GeluBatchNorm`.
    """

    features: int
    dtype: jnp.dtype = jnp.float32
    axis_name: Any = None

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"], train: bool | None = None) -> Float[Array, "B h w features"]:
        initializers = uniform_initializers(9 * inputs.shape[-1])
        outputs = convolution(self.features, 3, 2, self.dtype, **initializers)(inputs)
        norm = batch_norm(self.dtype, self.axis_name, name="norm")
        return norm(outputs, use_running_average=not is_training(self, train))


class LayerScale(nn.Module):
    """A factor for each channel (Touvron et al. 2021, CaiT).

    Attributes:
      initial: value of all factors at first.
      dtype: dtype of the computation; the factors are float32.
    """

    initial: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        scale = self.param("scale", nn.initializers.constant(self.initial), (inputs.shape[-1],), jnp.float32)
        return inputs * of_rank(4, scale.astype(self.dtype))
