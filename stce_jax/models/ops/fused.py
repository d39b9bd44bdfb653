"""Operations that a kernel for CUDA devices computes in one pass; used where `forms.gpu_forms` chooses them.

Other devices compute the plain form, and so do CUDA devices in float64. Kernels are imported where they are used, for
they import Pallas, and every model imports this module.

Shape letters: R rows, D model width or columns, B batch, P tokens with padding, A attention heads, E width of a head.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from stce_jax.models.ops.activations import gelu_derivative, gelu_plain
from stce_jax.models.ops.attention import attention_by_products, fused_kernel, has_fused_kernel
from stce_jax.models.ops.gradients import own_gradient, varying_axes
from stce_jax.models.ops.norms import layer_norm
from stce_jax.models.ops.ordering import recompute_from
from stce_jax.models.ops.precision import widened
from stce_jax.platform.backends import by_backend

_REVERSE_MODE_ALONE = (
    "kernels for GPUs have first derivatives in reverse mode alone; for others, trace the model without "
    "stce_jax.models.ops.forms.gpu_forms"
)


def residual_layer_norm_plain(
    inputs: Float[Array, "R D"],
    branch: Float[Array, "R D"],
    scale: Float[Array, "D"],
    bias: Float[Array, "D"],
    dtype: DTypeLike,
    epsilon: float,
) -> tuple[Float[Array, "R D"], Float[Array, "R D"]]:
    """The plain form of `residual_layer_norm`."""
    total = inputs + branch
    return total, layer_norm(total, scale, bias, dtype, epsilon)


def _residual_layer_norm_forward(
    inputs: Array, branch: Array, scale: Array, bias: Array, dtype: DTypeLike, epsilon: float
) -> tuple[tuple[Array, Array], tuple[Array, Array, Array, Array]]:
    from stce_jax.models.ops.kernels import residual_norm

    def plain(inputs: Array, branch: Array, scale: Array, bias: Array) -> tuple[Array, Array, Array, Array]:
        total, normed = residual_layer_norm_plain(inputs, branch, scale, bias, dtype, epsilon)
        wide = widened(total)
        mean, variance = wide.mean(axis=1), wide.var(axis=1)
        return total, normed, mean, jax.lax.rsqrt(variance + epsilon)

    kernel = functools.partial(residual_norm.forward, dtype=dtype, epsilon=epsilon)
    total, normed, mean, inverse = _by_platform(plain, kernel, inputs, branch, scale, bias)
    return (total, normed), (total, scale, mean, inverse)


def _residual_layer_norm_backward(
    dtype: DTypeLike, epsilon: float, saved: tuple[Array, Array, Array, Array], cotangents: tuple[Array, Array]
) -> tuple[Array, Array, Array, Array]:
    from stce_jax.models.ops.kernels import residual_norm

    def plain(
        total: Array, scale: Array, mean: Array, inverse: Array, dtotal: Array, dnormed: Array
    ) -> tuple[Array, Array, Array]:
        del mean, inverse
        _, pull_back = jax.vjp(
            lambda total, scale, bias: layer_norm(total, scale, bias, dtype, epsilon),
            total,
            scale,
            jnp.zeros_like(scale),
        )
        dinputs, dscale, dbias = pull_back(dnormed)
        return dinputs + dtotal, dscale, dbias

    dinputs, dscale, dbias = _by_platform(plain, residual_norm.backward, *saved, *cotangents)
    return dinputs, dinputs, dscale, dbias


@own_gradient(
    _residual_layer_norm_forward, _residual_layer_norm_backward, nondiff_argnums=(4, 5), refusal=_REVERSE_MODE_ALONE
)
def residual_layer_norm(
    inputs: Float[Array, "R D"],
    branch: Float[Array, "R D"],
    scale: Float[Array, "D"],
    bias: Float[Array, "D"],
    dtype: DTypeLike,
    epsilon: float,
) -> tuple[Float[Array, "R D"], Float[Array, "R D"]]:
    """(inputs + branch, the LayerNorm of that): a residual connection and the norm after it, see `norms.layer_norm`.

    Gradient: for CUDA devices; saves passes over memory. It is one pass, in which the sum's own cotangent is added.
    """
    return _residual_layer_norm_forward(inputs, branch, scale, bias, dtype, epsilon)[0]


def bias_gelu_plain(inputs: Float[Array, "R D"], bias: Float[Array, "D"]) -> Float[Array, "R D"]:
    """The plain form of `bias_gelu`."""
    return gelu_plain(widened(inputs) + widened(bias)).astype(inputs.dtype)


def _bias_gelu_forward(inputs: Array, bias: Array) -> tuple[Array, tuple[Array, Array]]:
    from stce_jax.models.ops.kernels import gelu

    return _by_platform(bias_gelu_plain, gelu.bias_gelu, inputs, bias), (inputs, bias)


def _bias_gelu_backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    from stce_jax.models.ops.kernels import gelu

    def plain(inputs: Array, bias: Array, cotangent: Array) -> tuple[Array, Array]:
        wide, cotangent = map(widened, recompute_from(inputs, cotangent))
        change = cotangent * gelu_derivative(wide + widened(bias))
        return change.astype(inputs.dtype), change.sum(axis=0)

    dinputs, dbias = _by_platform(plain, gelu.bias_gelu_backward, *saved, cotangent)
    return dinputs, dbias


@own_gradient(_bias_gelu_forward, _bias_gelu_backward, refusal=_REVERSE_MODE_ALONE)
def bias_gelu(inputs: Float[Array, "R D"], bias: Float[Array, "D"]) -> Float[Array, "R D"]:
    """GELU(inputs + bias) in float32 at least, in the inputs' dtype: what follows a linear layer's product in an MLP.

    Gradient: for CUDA devices; saves a pass over memory, that for the bias's gradient. It keeps the inputs alone.
    """
    return _bias_gelu_forward(inputs, bias)[0]


def _by_cudnn(query: Array, key: Array, value: Array, count: int) -> Array:
    """By the fused kernel; keys from `count` on are hidden, and all queries are computed."""
    batch, padded, _, _ = query.shape
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        query_seq_lengths=jnp.full((batch,), padded, jnp.int32),
        key_value_seq_lengths=jnp.full((batch,), count, jnp.int32),
        implementation="cudnn",
    )


def _padded_fused_forward(query: Array, key: Array, value: Array, count: int) -> tuple[Array, Any]:
    return jax.vjp(functools.partial(_by_cudnn, count=count), query, key, value)


def _padded_fused_backward(count: int, pull_back: Any, cotangent: Array) -> tuple[Array, Array, Array]:
    dquery, dkey, dvalue = pull_back(cotangent)
    real = (jnp.arange(cotangent.shape[1]) < count)[:, None, None]  # what stands behind is whatever the kernel left
    return dquery, jnp.where(real, dkey, 0), jnp.where(real, dvalue, 0)


@own_gradient(_padded_fused_forward, _padded_fused_backward, nondiff_argnums=(3,), refusal=_REVERSE_MODE_ALONE)
def _padded_fused(query: Array, key: Array, value: Array, count: int) -> Array:
    """`_by_cudnn`; gradients of hidden keys and values are zeros."""
    return _by_cudnn(query, key, value, count)


def padded_attention(
    query: Float[Array, "B P A E"], key: Float[Array, "B P A E"], value: Float[Array, "B P A E"], count: int
) -> Float[Array, "B P A E"]:
    """`attention.dot_product_attention` of P queries to the first `count` of P keys.

    By cuDNN's kernel on CUDA devices that have it, if P is even, and unless `attention.fused_kernel` is off.
    """

    def plain(query: Array, key: Array, value: Array) -> Array:
        return attention_by_products(query, key[:, :count], value[:, :count])

    if fused_kernel.value and has_fused_kernel(query.shape[-1], query.dtype):

        def kernel(query: Array, key: Array, value: Array) -> Array:
            return _padded_fused(query, key, value, count)

        return by_backend(query, key, value, cuda=kernel, default=plain)
    return plain(query, key, value)


def _by_platform(plain: Callable[..., Any], kernel: Callable[..., Any], *operands: Array) -> Any:
    """The kernel on CUDA devices, except in float64, of which `bias_gelu` has 1e-7 alone.

    Over a mapped axis and within `jax.shard_map` it is the plain form: what splits a kernel over devices knows neither.
    """
    if operands[0].dtype == jnp.float64 or any(varying_axes(jax.typeof(own)) for own in operands):
        return plain(*operands)

    @jax.custom_batching.custom_vmap
    def by_platform(*operands: Array) -> Any:
        return by_backend(*operands, cuda=kernel, default=plain)

    @by_platform.def_vmap
    def over_axis(size: int, batched: list[bool], *operands: Array) -> tuple[Any, Any]:
        outputs = jax.vmap(plain, [0 if own else None for own in batched], axis_size=size)(*operands)
        return outputs, jax.tree.map(lambda _: True, outputs)

    return by_platform(*operands)
