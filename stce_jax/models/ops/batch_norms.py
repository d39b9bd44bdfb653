"""BatchNorm by the batch's own statistics, with the activation before or behind it as one operation.

Shape letters: B batch, H W feature height and width, C channels.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from stce_jax.models.ops.activations import gelu, gelu_derivative, gelu_plain
from stce_jax.models.ops.forms import chosen
from stce_jax.models.ops.gradients import own_gradient
from stce_jax.models.ops.kernels.gelu import gelu_gradient_sums, gelu_sums
from stce_jax.models.ops.precision import of_rank, recompute_from, widened

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


def _by_batch(
    inputs: Array, scale: Array, bias: Array, axis_name: Any = None, known: tuple[Array, Array] | None = None
) -> tuple[Array, Array, Array, Array]:
    """(outputs, mean, variance, 1 / standard deviation) by the batch's own statistics, or those that are `known`."""
    mean, variance = _statistics(inputs, axis_name) if known is None else known
    inverse = jax.lax.rsqrt(variance + BATCH_NORM_EPSILON)
    return (inputs - of_rank(4, mean)) * of_rank(4, inverse * scale) + of_rank(4, bias), mean, variance, inverse


def _by_batch_backward(
    inputs: Array,
    scale: Array,
    mean: Array,
    inverse: Array,
    cotangent: Array,
    known: tuple[Array, Array] | None = None,
) -> tuple[Array, Array, Array]:
    """(dinputs, dscale, dbias) of `_by_batch`'s outputs; `known`: sums of the cotangent and of cotangent * inputs."""
    axes, count = (0, 1, 2), inputs.size // inputs.shape[-1]
    dbias, products = (cotangent.sum(axis=axes), (cotangent * inputs).sum(axis=axes)) if known is None else known
    # The mean leaves the sum, as in the variance: no array of what is normalized is needed for it.
    dscale = inverse * (products - mean * dbias)
    normalized = (inputs - of_rank(4, mean)) * of_rank(4, inverse)
    centered = cotangent - of_rank(4, dbias / count) - normalized * of_rank(4, dscale / count)
    return of_rank(4, inverse * scale) * centered, dscale, dbias


def _gelu_batch_norm_forward(
    inputs: Array, scale: Array, bias: Array, dtype: DTypeLike
) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, Array, Array]]:
    known = _gelu_statistics(inputs) if _by_kernels(inputs) else None
    outputs, mean, variance, inverse = _by_batch(gelu(widened(inputs)), scale, bias, known=known)
    return (outputs.astype(dtype), mean, variance), (inputs, scale, mean, inverse)


def _by_kernels(inputs: Array) -> bool:
    """Not in float64: the kernels' error function is good to 1e-7."""
    return chosen("gelu_statistics") and inputs.dtype != jnp.float64


def _gelu_statistics(inputs: Array) -> tuple[Array, Array]:
    """`_statistics` of gelu(inputs), on CUDA devices in one pass."""

    def kernel(inputs: Array) -> tuple[Array, Array]:
        count = inputs.size // inputs.shape[-1]
        mean, of_squares = (own / count for own in _sums_of_channels(gelu_sums, inputs))
        return mean, jnp.maximum(of_squares - jnp.square(mean), 0.0)

    return jax.lax.platform_dependent(
        inputs, cuda=kernel, default=lambda inputs: _statistics(gelu_plain(widened(inputs)))
    )


def _gelu_gradient_sums(inputs: Array, cotangent: Array) -> tuple[Array, Array]:
    """Of each channel: the cotangent's sum, and that of cotangent * gelu(inputs); on CUDA devices in one pass."""

    def kernel(inputs: Array, cotangent: Array) -> tuple[Array, Array]:
        return _sums_of_channels(gelu_gradient_sums, inputs, cotangent)

    def plain(inputs: Array, cotangent: Array) -> tuple[Array, Array]:
        wide = widened(cotangent)
        return wide.sum(axis=(0, 1, 2)), (wide * gelu_plain(widened(inputs))).sum(axis=(0, 1, 2))

    return jax.lax.platform_dependent(inputs, cotangent, cuda=kernel, default=plain)


def _sums_of_channels(sums: Any, *arrays: Array) -> tuple[Array, Array]:
    """A kernel's sums over rows as sums over all but channels; several pixels make a row of 128 where they can."""
    channels = arrays[0].shape[-1]
    width = 128 if 128 % channels == 0 and arrays[0].size % 128 == 0 else channels
    first, second = sums(*(own.reshape(-1, width) for own in arrays))
    return first.reshape(-1, channels).sum(axis=0), second.reshape(-1, channels).sum(axis=0)


def _gelu_batch_norm_backward(
    dtype: DTypeLike, saved: tuple[Array, Array, Array, Array], cotangents: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    del dtype
    inputs, scale, mean, inverse = saved
    inputs, cotangent = jax.lax.platform_dependent(
        inputs, cotangents[0], cpu=lambda *both: both, default=recompute_from
    )
    wide, cotangent = widened(inputs), widened(cotangent)
    known = _gelu_gradient_sums(inputs, cotangents[0]) if _by_kernels(inputs) else None
    dactivated, dscale, dbias = _by_batch_backward(gelu(wide), scale, mean, inverse, cotangent, known)
    return (dactivated * gelu_derivative(wide)).astype(inputs.dtype), dscale, dbias


@own_gradient(_gelu_batch_norm_forward, _gelu_batch_norm_backward, nondiff_argnums=(3,))
def gelu_batch_norm(
    inputs: Float[Array, "B H W C"], scale: Float[Array, "C"], bias: Float[Array, "C"], dtype: DTypeLike
) -> tuple[Float[Array, "B H W C"], Float[Array, "C"], Float[Array, "C"]]:
    """GELU, then BatchNorm by the batch's own statistics, as one operation with one gradient.

    Gradient: for every backend; saves memory, for it keeps the inputs alone and recomputes the GELU from them (on CPUs,
    where that is expensive, XLA may keep the GELU too). What XLA derives for the two by themselves keeps half a dozen
    arrays of this size and reads them in as many passes.

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
    inputs, cotangent = jax.lax.platform_dependent(
        inputs, cotangents[0], cpu=lambda *both: both, default=recompute_from
    )
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
