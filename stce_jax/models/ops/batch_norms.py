"""BatchNorm by the batch's own statistics, with the activation before or behind it as one operation.

Shape letters: B batch, H W feature height and width, C channels.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from stce_jax.models.ops.activations import gelu, gelu_derivative, gelu_plain
from stce_jax.models.ops.gradients import own_gradient
from stce_jax.models.ops.ordering import recompute_from
from stce_jax.models.ops.precision import of_rank, widened

BATCH_NORM_EPSILON = 1e-5  # PyTorch's default


def gelu_batch_norm_plain(
    inputs: Float[Array, "B H W C"],
    scale: Float[Array, "C"],
    bias: Float[Array, "C"],
    dtype: DTypeLike,
    axis_name: Any = None,
) -> tuple[Float[Array, "B H W C"], Float[Array, "C"], Float[Array, "C"]]:
    """The plain form of `gelu_batch_norm`.

    Args:
      axis_name: name of an axis of devices (`jax.shard_map`, `jax.pmap`, `jax.vmap`) whose images count in the
        statistics, too; None: those of `inputs` alone.
    """
    outputs, mean, variance, _ = _by_batch(gelu_plain(widened(inputs)), scale, bias, axis_name)
    return outputs.astype(dtype), jax.lax.stop_gradient(mean), jax.lax.stop_gradient(variance)


def _statistics(inputs: Array, axis_name: Any = None) -> tuple[Array, Array]:
    """(mean, variance), each [C], as flax takes them: biased, mean of squares less squared mean, never below 0."""
    mean = inputs.mean(axis=(0, 1, 2))
    of_squares = jnp.square(inputs).mean(axis=(0, 1, 2))
    if axis_name is not None:
        mean, of_squares = jax.lax.pmean((mean, of_squares), axis_name)
    return mean, jnp.maximum(of_squares - jnp.square(mean), 0.0)


def _by_batch(inputs: Array, scale: Array, bias: Array, axis_name: Any = None) -> tuple[Array, Array, Array, Array]:
    """(outputs, mean, variance, 1 / standard deviation) by the batch's own statistics."""
    mean, variance = _statistics(inputs, axis_name)
    inverse = jax.lax.rsqrt(variance + BATCH_NORM_EPSILON)
    return (inputs - of_rank(4, mean)) * of_rank(4, inverse * scale) + of_rank(4, bias), mean, variance, inverse


def _by_batch_backward(
    inputs: Array, scale: Array, mean: Array, inverse: Array, cotangent: Array
) -> tuple[Array, Array, Array]:
    """(dinputs, dscale, dbias) of `_by_batch`'s outputs."""
    axes, count = (0, 1, 2), inputs.size // inputs.shape[-1]
    dbias = cotangent.sum(axis=axes)
    # The mean leaves the sum, as in the variance: no array of what is normalized is needed for it.
    dscale = inverse * ((cotangent * inputs).sum(axis=axes) - mean * dbias)
    normalized = (inputs - of_rank(4, mean)) * of_rank(4, inverse)
    centered = cotangent - of_rank(4, dbias / count) - normalized * of_rank(4, dscale / count)
    return of_rank(4, inverse * scale) * centered, dscale, dbias


def _gelu_batch_norm_forward(
    inputs: Array, scale: Array, bias: Array, dtype: DTypeLike
) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, Array, Array]]:
    outputs, mean, variance, inverse = _by_batch(gelu(widened(inputs)), scale, bias)
    return (outputs.astype(dtype), mean, variance), (inputs, scale, mean, inverse)


def _gelu_batch_norm_backward(
    dtype: DTypeLike, saved: tuple[Array, Array, Array, Array], cotangents: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    del dtype
    inputs, scale, mean, inverse = saved
    inputs, cotangent = recompute_from(inputs, cotangents[0])
    wide, cotangent = widened(inputs), widened(cotangent)
    dactivated, dscale, dbias = _by_batch_backward(gelu(wide), scale, mean, inverse, cotangent)
    return (dactivated * gelu_derivative(wide)).astype(inputs.dtype), dscale, dbias


@own_gradient(_gelu_batch_norm_forward, _gelu_batch_norm_backward, nondiff_argnums=(3,))
def gelu_batch_norm(
    inputs: Float[Array, "B H W C"], scale: Float[Array, "C"], bias: Float[Array, "C"], dtype: DTypeLike
) -> tuple[Float[Array, "B H W C"], Float[Array, "C"], Float[Array, "C"]]:
    """GELU, then BatchNorm by the batch's own statistics, as one operation with one gradient.

    Gradient: for every backend; saves memory, for it keeps the inputs alone and recomputes the GELU from them (with
    several CPU devices XLA may keep the GELU too). What XLA derives for the two by themselves keeps half a dozen arrays
    of this size and reads them in as many passes.

    Returns:
      (outputs, mean, variance): outputs in `dtype`, computed in float32 at least; the statistics of gelu(inputs), the
      variance as flax takes it (biased, mean of squares less squared mean, never below 0), constants of the gradient.
    """
    return _gelu_batch_norm_forward(inputs, scale, bias, dtype)[0]


def batch_norm_plain(
    inputs: Float[Array, "B H W C"],
    scale: Float[Array, "C"],
    bias: Float[Array, "C"],
    dtype: DTypeLike,
    silu: bool,
    axis_name: Any = None,
) -> tuple[Float[Array, "B H W C"], Float[Array, "C"], Float[Array, "C"]]:
    """The plain form of `batch_norm`; `axis_name`: see `gelu_batch_norm_plain`."""
    (outputs, mean, variance), _ = _batch_norm_forward(inputs, scale, bias, dtype, silu, axis_name)
    return outputs, jax.lax.stop_gradient(mean), jax.lax.stop_gradient(variance)


def _batch_norm_forward(
    inputs: Array, scale: Array, bias: Array, dtype: DTypeLike, silu: bool, axis_name: Any = None
) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, Array, Array, Array]]:
    outputs, mean, variance, inverse = _by_batch(widened(inputs), scale, bias, axis_name)
    outputs = jax.nn.silu(outputs) if silu else outputs
    return (outputs.astype(dtype), mean, variance), (inputs, scale, bias, mean, inverse)


def _batch_norm_backward(
    dtype: DTypeLike,
    silu: bool,
    saved: tuple[Array, Array, Array, Array, Array],
    cotangents: tuple[Array, Array, Array],
) -> tuple[Array, Array, Array]:
    del dtype
    inputs, scale, bias, mean, inverse = saved
    inputs, cotangent = recompute_from(inputs, cotangents[0])
    wide, cotangent = widened(inputs), widened(cotangent)
    if silu:
        normalized = (wide - of_rank(4, mean)) * of_rank(4, inverse * scale) + of_rank(4, bias)
        share = jax.nn.sigmoid(normalized)
        cotangent = cotangent * (share * (1.0 + normalized * (1.0 - share)))
    dinputs, dscale, dbias = _by_batch_backward(wide, scale, mean, inverse, cotangent)
    return dinputs.astype(inputs.dtype), dscale, dbias


@own_gradient(_batch_norm_forward, _batch_norm_backward, nondiff_argnums=(3, 4))
def batch_norm(
    inputs: Float[Array, "B H W C"], scale: Float[Array, "C"], bias: Float[Array, "C"], dtype: DTypeLike, silu: bool
) -> tuple[Float[Array, "B H W C"], Float[Array, "C"], Float[Array, "C"]]:
    """BatchNorm by the batch's own statistics, then SiLU, x * sigmoid(x), where `silu` says so.

    Gradient: for every backend; saves memory, for it keeps the inputs alone. What XLA derives keeps the differences to
    the mean, the sigmoid and the SiLU's inputs as well, and writes and reads each of them.

    Returns:
      (outputs, mean, variance): as `gelu_batch_norm`; the statistics are those of `inputs`.
    """
    return _batch_norm_forward(inputs, scale, bias, dtype, silu)[0]
