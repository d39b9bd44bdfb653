"""LayerNorm and RMSNorm.

Shape letters: D model width.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from stce_jax.models.ops.gradients import own_gradient
from stce_jax.models.ops.ordering import recompute_from
from stce_jax.models.ops.precision import as_column, of_rank, widened

LAYER_NORM_EPSILON = 1e-6  # the ViT's
TORCH_LAYER_NORM_EPSILON = 1e-5  # PyTorch's default, of most other bodies


def layer_norm_plain(
    inputs: Float[Array, "*rows D"],
    scale: Float[Array, "D"],
    bias: Float[Array, "D"],
    dtype: DTypeLike,
    epsilon: float,
) -> Float[Array, "*rows D"]:
    """The plain form of `layer_norm`."""
    wide = widened(inputs)
    mean = wide.mean(axis=-1, keepdims=True)
    variance = jnp.square(wide - mean).mean(axis=-1, keepdims=True)
    normalized = (wide - mean) * jax.lax.rsqrt(variance + epsilon)
    return (normalized * of_rank(wide.ndim, scale) + of_rank(wide.ndim, bias)).astype(dtype)


def _layer_norm_forward(
    inputs: Array, scale: Array, bias: Array, dtype: DTypeLike, epsilon: float
) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    wide = widened(inputs)
    mean = as_column(wide.mean(axis=-1, keepdims=True))
    inverse = jax.lax.rsqrt(as_column(jnp.square(wide - mean).mean(axis=-1, keepdims=True)) + epsilon)
    outputs = (wide - mean) * inverse * of_rank(wide.ndim, scale) + of_rank(wide.ndim, bias)
    return outputs.astype(dtype), (inputs, scale, mean, inverse)


def _layer_norm_backward(
    dtype: DTypeLike, epsilon: float, saved: tuple[Array, Array, Array, Array], cotangent: Array
) -> tuple[Array, Array, Array]:
    del dtype, epsilon
    inputs, scale, mean, inverse = saved
    wide, cotangent = map(widened, recompute_from(inputs, cotangent))
    normalized = (wide - mean) * inverse
    rows = tuple(range(inputs.ndim - 1))
    dscale, dbias = (cotangent * normalized).sum(axis=rows), cotangent.sum(axis=rows)
    cotangent *= of_rank(inputs.ndim, scale)
    level, along = (as_column(row.mean(axis=-1, keepdims=True)) for row in (cotangent, cotangent * normalized))
    dinputs = inverse * (cotangent - level - normalized * along)
    return dinputs.astype(inputs.dtype), dscale, dbias


@own_gradient(_layer_norm_forward, _layer_norm_backward, nondiff_argnums=(3, 4))
def layer_norm(
    inputs: Float[Array, "*rows D"],
    scale: Float[Array, "D"],
    bias: Float[Array, "D"],
    dtype: DTypeLike,
    epsilon: float,
) -> Float[Array, "*rows D"]:
    """LayerNorm over the last axis, computed in float32 at least; `dtype` is the result's.

    Gradient: for CPUs; saves time: XLA's own recomputes the mean in every use, and a whole training step of ViT-S takes
    1.7 times as long. It keeps the inputs, which the residual connection keeps anyway, and two numbers a row.

    The variance comes from differences to the mean: flax's default, the mean of squares minus the squared mean, loses
    every digit on a patch of one colour.
    """
    return _layer_norm_forward(inputs, scale, bias, dtype, epsilon)[0]


def rms_norm_plain(
    inputs: Float[Array, "*rows D"], scale: Float[Array, "D"], dtype: DTypeLike, epsilon: float
) -> Float[Array, "*rows D"]:
    """The plain form of `rms_norm`."""
    wide = widened(inputs)
    inverse = jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + epsilon)
    return (wide * inverse * of_rank(wide.ndim, scale)).astype(dtype)


def _rms_norm_forward(
    inputs: Array, scale: Array, dtype: DTypeLike, epsilon: float
) -> tuple[Array, tuple[Array, Array, Array]]:
    wide = widened(inputs)
    inverse = jax.lax.rsqrt(as_column(jnp.square(wide).mean(axis=-1, keepdims=True)) + epsilon)
    return (wide * inverse * of_rank(wide.ndim, scale)).astype(dtype), (inputs, scale, inverse)


def _rms_norm_backward(
    dtype: DTypeLike, epsilon: float, saved: tuple[Array, Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    del dtype, epsilon
    inputs, scale, inverse = saved
    wide, cotangent = map(widened, recompute_from(inputs, cotangent))
    normalized = wide * inverse
    dscale = (cotangent * normalized).sum(axis=tuple(range(inputs.ndim - 1)))
    cotangent *= of_rank(inputs.ndim, scale)
    along = as_column((cotangent * normalized).mean(axis=-1, keepdims=True))
    dinputs = inverse * (cotangent - normalized * along)
    return dinputs.astype(inputs.dtype), dscale


@own_gradient(_rms_norm_forward, _rms_norm_backward, nondiff_argnums=(2, 3))
def rms_norm(
    inputs: Float[Array, "*rows D"], scale: Float[Array, "D"], dtype: DTypeLike, epsilon: float
) -> Float[Array, "*rows D"]:
    """RMSNorm over the last axis (Zhang and Sennrich 2019): no mean is taken off and there is no bias.

    Computed in float32 at least; `dtype` is the result's.

    Gradient: for CPUs; saves what that of `layer_norm` saves. It keeps the inputs and one number a row.
    """
    return _rms_norm_forward(inputs, scale, dtype, epsilon)[0]
