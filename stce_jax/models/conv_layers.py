"""Small linen modules on feature maps: convolutions of embeddings, and of bodies that mix them with attention.

Shape letters: B batch, H W feature height and width, h w those of a smaller map, C channels.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from stce_jax.models.batch_norms import BatchNorm, GeluBatchNorm
from stce_jax.models.layers import LayerNorm, linear
from stce_jax.models.ops.activations import gelu
from stce_jax.models.ops.convolution import convolve, halving_convolution
from stce_jax.models.ops.depthwise import depthwise_convolution, depthwise_residual
from stce_jax.models.ops.norms import TORCH_LAYER_NORM_EPSILON
from stce_jax.models.ops.parts import by_parts
from stce_jax.models.ops.precision import of_rank

he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _convolve(inputs: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **options: Any) -> jax.Array:
    """What flax.linen.Conv calls in place of `jax.lax.conv_general_dilated`."""
    dilated = any(rate != 1 for axes in ("lhs_dilation", "rhs_dilation") for rate in options.get(axes) or ())
    if dilated or options.get("feature_group_count", 1) != 1 or options.get("precision") is not None:
        return jax.lax.conv_general_dilated(inputs, kernel, strides, padding, **options)
    if kernel.shape[:2] == (3, 3) and strides == (2, 2):  # `convolution` has padded by 1
        return halving_convolution(inputs, kernel)
    return convolve(inputs, kernel, strides[0], tuple(padding))


def _convolve_by_parts(inputs: jax.Array, *operands: Any, **options: Any) -> jax.Array:
    """`_convolve` for a stack of convolutions alone, where nothing else keeps a CPU's other cores busy."""
    return by_parts(lambda part: _convolve(part, *operands, **options), inputs)


def convolution(features: int, kernel: int, stride: int, dtype: Any, *, bias: bool = True, **options: Any) -> nn.Conv:
    """A square convolution padded alike on all sides: "SAME" would shift strided ones by half a pixel.

    `options` of flax.linen.Conv, such as `name`, replace ours.
    """
    margin = kernel // 2
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=stride,
        padding=((margin, margin), (margin, margin)),
        use_bias=bias,
        dtype=dtype,
        **{
            "kernel_init": he_normal_fan_out,
            "name": "convolution",
            "conv_general_dilated": _convolve,
            **options,
        },
    )


class ConvModule(nn.Module):
    """Eq. 1: convolution -> GELU -> BatchNorm, [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features].

    Attributes:
      features: channels of the result.
      stride: of the convolution, in both directions.
      kernel: side of the convolution's kernel.
      dtype: dtype of the computation; parameters and statistics are float32.
      axis_name: see `batch_norms.BatchNorm`.
    """

    features: int
    stride: int
    kernel: int = 3
    dtype: jnp.dtype = jnp.float32
    axis_name: Any = None

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"], train: bool | None = None) -> Float[Array, "B h w features"]:
        convolve = convolution(
            self.features, self.kernel, self.stride, self.dtype, conv_general_dilated=_convolve_by_parts
        )
        outputs = convolve(inputs)
        return GeluBatchNorm(self.dtype, self.axis_name, name="norm")(outputs, train=train)


class EarlyConvModule(nn.Module):
    """EarlyConv's order (Xiao et al. 2021): convolution without bias -> BatchNorm -> ReLU; shapes as `ConvModule`.

    Attributes:
      features: channels of the result.
      stride: of the convolution, in both directions.
      dtype: dtype of the computation; parameters and statistics are float32.
      axis_name: see `batch_norms.BatchNorm`.
    """

    features: int
    stride: int
    dtype: jnp.dtype = jnp.float32
    axis_name: Any = None

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"], train: bool | None = None) -> Float[Array, "B h w features"]:
        convolve = convolution(
            self.features, 3, self.stride, self.dtype, bias=False, conv_general_dilated=_convolve_by_parts
        )
        outputs = convolve(inputs)
        return nn.relu(BatchNorm(self.dtype, self.axis_name, name="norm")(outputs, train=train))


def uniform_initializers(fan_in: int) -> dict[str, Any]:
    """PyTorch's default for convolutions: kernel and bias uniform in +-1 / sqrt(fan_in)."""
    bound = fan_in**-0.5

    def draw(key: Array, shape: Any, dtype: Any = jnp.float32, **_: Any) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return {"kernel_init": draw, "bias_init": draw}


class DepthwiseResidual(nn.Module):
    """x + depthwise 3x3 convolution of x, [B, H, W, C] -> [B, H, W, C]: SViT's conditional positions.

    Attributes:
      dtype: dtype of the computation; parameters are float32.
      kernel_init: initialisation of the kernel, beside a bias of zeros; None: PyTorch's default for both.
    """

    dtype: jnp.dtype = jnp.float32
    kernel_init: Any = None

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        channels, initializers = inputs.shape[-1], uniform_initializers(9)
        if self.kernel_init is not None:
            initializers = {"kernel_init": self.kernel_init, "bias_init": nn.initializers.zeros}
        kernel = self.param("kernel", initializers["kernel_init"], (3, 3, 1, channels), jnp.float32)
        bias = self.param("bias", initializers["bias_init"], (channels,), jnp.float32)
        return depthwise_residual(*(array.astype(self.dtype) for array in (inputs, kernel, bias)))


class DepthwiseConvolution(nn.Module):
    """3x3 convolution of each channel by itself, without bias, [B, H, W, C] -> [B, ceil(H / stride), ..., C].

    Attributes:
      stride: 1 or 2.
      dtype: dtype of the computation; parameters are float32.
      kernel_init: initialisation of the kernel.
    """

    stride: int = 1
    dtype: jnp.dtype = jnp.float32
    kernel_init: Any = he_normal_fan_out

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        kernel = self.param("kernel", self.kernel_init, (3, 3, 1, inputs.shape[-1]), jnp.float32)
        return depthwise_convolution(inputs.astype(self.dtype), kernel.astype(self.dtype), self.stride)


def pointwise(
    inputs: Float[Array, "B H W C"], features: int, dtype: Any, name: str, **options: Any
) -> Float[Array, "B H W features"]:
    """A 1x1 convolution, as a linear layer of rows (see `layers.Attention`) that the calling module owns.

    `options` of flax.linen.Dense, such as `use_bias`, replace ours.
    """
    batch, height, width, channels = inputs.shape
    layer = linear(features, dtype, name, **{"kernel_init": he_normal_fan_out, **options})
    return layer(inputs.reshape(-1, channels)).reshape(batch, height, width, features)


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
      axis_name: of BatchNorm's statistics, see `batch_norms.BatchNorm`.
    """

    features: int
    dtype: jnp.dtype = jnp.float32
    axis_name: Any = None

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"], train: bool | None = None) -> Float[Array, "B h w features"]:
        initializers = uniform_initializers(9 * inputs.shape[-1])
        outputs = convolution(self.features, 3, 2, self.dtype, **initializers)(inputs)
        return BatchNorm(self.dtype, self.axis_name, name="norm")(outputs, train=train)


class NormedHalving(nn.Module):
    """A convolution of stride 2 -> LayerNorm, between the stages of Focal and DAT: [B, H, W, C] -> [B, h, w, features].

    Attributes:
      features: channels of the result.
      kernel: side of the convolution's kernel: 2, where h = H // 2 and an odd side loses its last row or column, or 3,
        padded by 1, where h = ceil(H / 2).
      bias: whether the convolution has one.
      dtype: dtype of the computation; parameters are float32.
    """

    features: int
    kernel: int = 2
    bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"]) -> Float[Array, "B h w features"]:
        batch, height, width, channels = inputs.shape
        options = {**uniform_initializers(self.kernel**2 * channels), "name": "projection"}
        if self.kernel == 2:  # as a product: no place is in two of its cells
            rows, columns = height // 2, width // 2
            cells = inputs[:, : 2 * rows, : 2 * columns].reshape(batch, rows, 2, columns, 2, channels)
            cells = cells.transpose(0, 1, 3, 2, 4, 5).reshape(-1, 4 * channels)  # [B h w, 4 C]
            outputs = linear(self.features, self.dtype, use_bias=self.bias, **options)(cells)
            outputs = outputs.reshape(batch, rows, columns, self.features)
        else:
            outputs = convolution(self.features, self.kernel, 2, self.dtype, bias=self.bias, **options)(inputs)
        return LayerNorm(self.dtype, TORCH_LAYER_NORM_EPSILON, name="norm")(outputs)


class LayerScale(nn.Module):
    """A factor for each channel (Touvron et al. 2021, CaiT).

    Attributes:
      initial: value of all factors at first.
      dtype: dtype of the computation; the factors are float32.
    """

    initial: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "... C"]) -> Float[Array, "... C"]:
        scale = self.param("scale", nn.initializers.constant(self.initial), (inputs.shape[-1],), jnp.float32)
        return inputs.astype(self.dtype) * of_rank(inputs.ndim, scale.astype(self.dtype))
