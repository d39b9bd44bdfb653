"""What convolution stacks are made of: convolution, activation and BatchNorm, in the paper's order or EarlyConv's.

Shape letters: B batch, H W feature height and width, C channels.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from stce_jax.models.layers import gelu, gelu_derivative, recompute_from, widened

he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
EPSILON, MOMENTUM = 1e-5, 0.9  # PyTorch's defaults; its momentum is the new statistics' share, 0.1


@jax.custom_vjp
def halving_convolution(inputs, kernel):
    """A convolution of stride 2, padded by 1 all around, in forms that suit CPUs.

    The gradient of its inputs is a convolution of the cotangent with zeros put between its rows and columns. XLA for
    CPUs multiplies with those zeros, three of four numbers, so there the rows and columns of even and of odd number are
    computed apart, four convolutions without any zeros. And from an image's three channels to a few it goes over blocks
    of 2x2 pixels. Other backends have kernels of their own and keep them.

    Args:
      inputs: [B, H, W, C], any float dtype.
      kernel: [3, 3, C, features] of the same dtype.

    Returns:
      [B, ceil(H / 2), ceil(W / 2), features].
    """
    return _halving(inputs, kernel)


def _halving_convolution_forward(inputs, kernel):
    return halving_convolution(inputs, kernel), (inputs, kernel)


def _halving_convolution_backward(saved, cotangent):
    inputs, kernel = saved
    _, pull_back = jax.vjp(_halving, inputs, kernel)
    inputs_gradient = jax.lax.platform_dependent(
        cotangent,
        cpu=lambda cotangent: _by_parity(cotangent, kernel, inputs.shape),
        default=lambda cotangent: pull_back(cotangent)[0],
    )
    return inputs_gradient, pull_back(cotangent)[1]


halving_convolution.defvjp(_halving_convolution_forward, _halving_convolution_backward)


def _by_parity(cotangent, kernel, shape):
    """The inputs' gradient, [B, H, W, C] = `shape`, from the cotangent [B, ceil(H / 2), ceil(W / 2), features].

    Input row 2i has met the kernel's middle row alone, in output row i; input row 2i + 1 the last in output row i and
    the first in output row i + 1. Columns likewise.
    """
    batch, rows, columns, _ = cotangent.shape
    kernel = kernel.transpose(0, 1, 3, 2)  # [3, 3, features, C]
    met = ((slice(1, 2), (0, 0)), (slice(2, None, -2), (0, 1)))  # the kernel's rows in order, and the padding
    parts = [
        _convolve(cotangent, kernel[down, across], 1, (below, right)) for down, below in met for across, right in met
    ]
    even, odd = (jnp.stack(pair, axis=3).reshape(batch, rows, 2 * columns, -1) for pair in (parts[:2], parts[2:]))
    gradient = jnp.stack([even, odd], axis=2).reshape(batch, 2 * rows, 2 * columns, -1)
    return gradient[:, : shape[1], : shape[2]]


def _halving(inputs, kernel):
    _, _, channels, features = kernel.shape
    plain = functools.partial(_convolve, stride=2, padding=((1, 1), (1, 1)))
    if channels > 3 or features > 16:  # with more, XLA for CPUs is as fast without blocks, or faster
        return plain(inputs, kernel)
    return jax.lax.platform_dependent(inputs, kernel, cpu=_by_blocks, default=plain)


def _by_blocks(inputs, kernel):
    """The convolution with blocks of 2x2 pixels as one of four times the channels, of stride 1.

    The kernel gets a fourth row and column, of zeros, and is cut into 2x2 blocks likewise.
    """
    batch, height, width, channels = inputs.shape
    rows, columns = height // 2 + height % 2 + 1, width // 2 + width % 2 + 1
    margins = ((0, 0), (1, 2 * rows - height - 1), (1, 2 * columns - width - 1), (0, 0))
    blocks = jnp.pad(inputs, margins).reshape(batch, rows, 2, columns, 2 * channels).transpose(0, 1, 3, 2, 4)
    kernel = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0))).reshape(2, 2, 2, 2 * channels, -1)
    kernel = kernel.transpose(0, 2, 1, 3, 4).reshape(2, 2, 4 * channels, -1)
    return _convolve(blocks.reshape(batch, rows, columns, -1), kernel, 1, ((0, 0), (0, 0)))


def _convolve(inputs, kernel, stride, padding):
    return jax.lax.conv_general_dilated(
        inputs, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def gelu_batch_norm(inputs, scale, bias, dtype):
    """GELU, then BatchNorm by the batch's own statistics, as one operation with one gradient.

    The backward pass keeps the inputs alone and computes the GELU anew from them; on CPUs, where that is dear, it keeps
    the GELU too. What XLA derives for the two by themselves keeps half a dozen arrays of this size and reads them in as
    many passes.

    Args:
      inputs: [B, H, W, C], any float dtype; computed in float32 at least.
      scale, bias: [C] float32.
      dtype: of the outputs.

    Returns:
      (outputs [B, H, W, C], mean [C], variance [C]): the statistics of gelu(inputs), the variance as flax takes it
      (biased, mean of squares less squared mean, never below 0), constants of the gradient.
    """
    return _gelu_batch_norm_forward(inputs, scale, bias, dtype)[0]


def _gelu_batch_norm_forward(inputs, scale, bias, dtype):
    activated = gelu(widened(inputs))
    mean = activated.mean(axis=(0, 1, 2))
    variance = jnp.maximum(jnp.square(activated).mean(axis=(0, 1, 2)) - jnp.square(mean), 0.0)
    inverse = jax.lax.rsqrt(variance + EPSILON)
    outputs = (activated - mean) * (inverse * scale) + bias
    return (outputs.astype(dtype), mean, variance), (inputs, scale, mean, inverse)


def _gelu_batch_norm_backward(dtype, saved, cotangents):
    del dtype
    inputs, scale, mean, inverse = saved
    inputs, cotangent = jax.lax.platform_dependent(
        inputs, cotangents[0], cpu=lambda *both: both, default=recompute_from
    )
    wide, cotangent = widened(inputs), widened(cotangent)
    activated = gelu(wide)
    axes, count = (0, 1, 2), wide.size // wide.shape[-1]
    bias_gradient = cotangent.sum(axis=axes)
    # The mean leaves the sum, as in the variance: no array of what is normalized is needed for it.
    scale_gradient = inverse * ((cotangent * activated).sum(axis=axes) - mean * bias_gradient)
    normalized = (activated - mean) * inverse
    centered = cotangent - bias_gradient / count - normalized * (scale_gradient / count)
    gradient = (inverse * scale) * centered * gelu_derivative(wide)
    return gradient.astype(inputs.dtype), scale_gradient, bias_gradient


gelu_batch_norm.defvjp(_gelu_batch_norm_forward, _gelu_batch_norm_backward)


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
            inverse = jax.lax.rsqrt(running_variance.value + EPSILON)
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
            use_running_average=not train, momentum=MOMENTUM, epsilon=EPSILON, dtype=self.dtype, name="norm"
        )
        return nn.relu(norm(outputs))
