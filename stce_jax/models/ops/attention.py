"""Exact softmax attention, in the form that each backend computes fastest.

Shape letters: B batch, M queries, N keys, A attention heads, E width of a head.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from stce_jax.models.ops.gradients import own_gradient
from stce_jax.models.ops.linear import multiply
from stce_jax.models.ops.precision import wide_product, widened
from stce_jax.platform.backends import by_backend

POLICY_EPSILON = 1e-6  # see `policy_weights`
TOKENS_MULTIPLE = 8  # cuDNN's gradient needs an even number of tokens, products on GPUs prefer a multiple of 8
# `with fused_kernel(False):` around what is traced takes the products on all devices, which have every derivative.
fused_kernel = jax.make_user_context(True)
_REVERSE_MODE_ALONE = (
    "cuDNN's fused attention has first derivatives in reverse mode alone; for others, trace the model within "
    "`with stce_jax.models.ops.attention.fused_kernel(False):`, or compute in float32"
)
Operands = tuple[Array, Array, Array, Array | None, Array | None]  # query, key, value, bias, mask


def dot_product_attention(
    query: Float[Array, "B M A E"],
    key: Float[Array, "B N A E"],
    value: Float[Array, "B N A E"],
    *,
    bias: Float[Array, "#B #A #M #N"] | None = None,
    mask: Bool[Array, "B N"] | None = None,
) -> Float[Array, "B M A E"]:
    """Exact softmax attention: softmax(<q, k> / sqrt(E) + bias) v, for each head.

    In 16 bits, on CUDA devices that have it and with as many queries as keys, cuDNN's fused kernel; elsewhere, and
    within `with fused_kernel(False):`, `attention_by_products`.

    Args:
      query, key, value: of one dtype, which is the result's.
      bias: finite numbers, added to the scaled logits; axes may be 1, leading ones missing. The gradient is summed over
        them. The fused kernel rounds it to the query's dtype.
      mask: keys that may be seen; None: all. Images without any get zeros.
    """
    operands = (query, key, value, _with_four_axes(bias), mask)
    if fused_kernel.value and query.shape == key.shape and has_fused_kernel(query.shape[-1], query.dtype):
        return by_backend(*operands, cuda=_fused, default=attention_by_products)
    return by_backend(*operands, default=attention_by_products)


def attention_weights(
    query: Float[Array, "B M A E"],
    key: Float[Array, "B N A E"],
    *,
    bias: Float[Array, "#B #A #M #N"] | None = None,
    mask: Bool[Array, "B N"] | None = None,
) -> Float[Array, "B A M N"]:
    """The weights of `dot_product_attention`, float32 or wider; rows sum to one, or are zeros if no key may be seen."""
    query, key = (array.transpose(0, 2, 1, 3) for array in (query, key))
    weights, total = _unnormalized_weights(query, key, _with_four_axes(bias), mask)
    return weights / total


def weighted_sum(weights: Float[Array, "B A M N"], value: Float[Array, "B N A E"]) -> Float[Array, "B M A E"]:
    """What `dot_product_attention` makes of its weights, where they are there anyway; in the value's dtype."""
    return wide_product("bamn,bnae->bmae", weights.astype(value.dtype), value).astype(value.dtype)


def policy_attention(
    query: Float[Array, "B M A E"],
    key: Float[Array, "B N A E"],
    value: Float[Array, "B N A E"],
    policy: Float[Array, "B N"],
    *,
    bias: Float[Array, "#B #A #M #N"] | None = None,
    mask: Bool[Array, "B N"] | None = None,
) -> Float[Array, "B M A E"]:
    """Attention to tokens as far as they are live, which a gradient flows through: see `policy_weights`."""
    return weighted_sum(policy_weights(query, key, policy, bias=bias, mask=mask), value)


def policy_weights(
    query: Float[Array, "B M A E"],
    key: Float[Array, "B N A E"],
    policy: Float[Array, "B N"],
    *,
    bias: Float[Array, "#B #A #M #N"] | None = None,
    mask: Bool[Array, "B N"] | None = None,
) -> Float[Array, "B A M N"]:
    """The weights of `policy_attention`, float32 or wider, by plain products.

    Source: DynamicViT (Rao et al. 2021) and its published code. exp(logit) is multiplied with the key's policy, but for
    a token's own key with 1. The small number added to each keeps a policy's gradient, and rows that sum to one, even
    where no key is live.

    Args:
      query, key: the M queries are the first of the N keys' tokens.
      policy: 1 live, 0 dropped; the gradient is that of a product, also at 0.
      bias, mask: see `dot_product_attention`; what the mask hides gets nothing, not even of itself.
    """
    count = key.shape[1]
    logits = wide_product("bmae,bnae->bamn", query / _scale(query), key)
    logits = logits if bias is None else logits + bias.astype(logits.dtype)
    live = jnp.where(jnp.eye(query.shape[1], count, dtype=bool), 1.0, policy[:, None, None, :].astype(logits.dtype))
    least: Any = POLICY_EPSILON / count
    if mask is not None:
        seen = mask[:, None, None, :]
        logits = jnp.where(seen, logits, jnp.finfo(logits.dtype).min)
        least = jnp.where(seen, POLICY_EPSILON / jnp.maximum(seen.sum(axis=-1, keepdims=True), 1), 0.0)
        live = jnp.where(seen, live, 0.0)
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True)) * live
    return (weights + least) / (weights.sum(axis=-1, keepdims=True) + POLICY_EPSILON)


def attention_plain(
    query: Float[Array, "B M A E"],
    key: Float[Array, "B N A E"],
    value: Float[Array, "B N A E"],
    *,
    bias: Float[Array, "#B #A #M #N"] | None = None,
    mask: Bool[Array, "B N"] | None = None,
) -> Float[Array, "B M A E"]:
    """The plain form of `dot_product_attention`."""
    dtype = value.dtype
    query, key, value = map(widened, (query, key, value))
    logits = jnp.einsum("bmae,bnae->bamn", query, key) / _scale(query)
    logits = logits if bias is None else logits + bias
    if mask is None:
        weights = jax.nn.softmax(logits)
    else:
        seen = mask[:, None, None, :]
        weights = jnp.where(seen, jax.nn.softmax(jnp.where(seen, logits, jnp.finfo(logits.dtype).min)), 0.0)
    return jnp.einsum("bamn,bnae->bmae", weights, value).astype(dtype)


def has_fused_kernel(width: int, dtype: DTypeLike) -> bool:
    """Whether this process's GPUs have cuDNN's attention for such heads: Ampere or newer, 16 bits, not too wide."""
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16) or width % 8 or width > 128:
        return False
    capability = getattr(jax.local_devices()[0], "compute_capability", "0")  # "9.0"; of GPUs alone
    return float(capability) >= 8.0


def _by_cudnn(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None,
    mask: Array | None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Array:
    """By the fused kernel, for M = N: tokens are padded to a multiple of 8, and padded keys hidden.

    For CUDA devices; saves time and the memory of the weights. `implementation` is for tests on other devices.
    """
    batch, tokens, _, _ = query.shape
    extra = -tokens % TOKENS_MULTIPLE
    lengths = seen = None
    if bias is None and mask is None:
        lengths = jnp.full((batch,), tokens, jnp.int32) if extra else None
    else:
        # The kernel takes one bias of [B or 1, A or 1, N, N] in the operands' dtype. Keys are hidden by large negative
        # numbers in it, padded ones too, not by lengths: so what padding gives to the bias's gradient is zero for sure.
        if bias is not None:
            bias = jnp.broadcast_to(bias, (*bias.shape[:2], tokens, tokens)).astype(query.dtype)
            bias = jnp.pad(bias, ((0, 0), (0, 0), (0, extra), (0, extra)))
        if mask is not None or extra:
            seen = jnp.pad(jnp.ones((1, tokens), bool) if mask is None else mask, ((0, 0), (0, extra)))
            seen = jnp.broadcast_to(seen[:, None, None, :], (seen.shape[0], 1, tokens + extra, tokens + extra))
    if extra:
        query, key, value = (jnp.pad(array, ((0, 0), (0, extra), (0, 0), (0, 0))) for array in (query, key, value))
    outputs = jax.nn.dot_product_attention(
        query,
        key,
        value,
        bias,
        seen,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation=implementation,
    )[:, :tokens]
    return outputs if mask is None else jnp.where(mask.any(axis=1)[:, None, None, None], outputs, 0)


def _fused_forward(*operands: Array | None) -> tuple[Array, Any]:
    return jax.vjp(_by_cudnn, *operands)


def _fused_backward(pull_back: Any, cotangent: Array) -> Operands:
    return pull_back(cotangent)


@own_gradient(_fused_forward, _fused_backward, refusal=_REVERSE_MODE_ALONE)
def _fused(query: Array, key: Array, value: Array, bias: Array | None, mask: Array | None) -> Array:
    """`_by_cudnn`, with the kernel's own gradient."""
    return _by_cudnn(query, key, value, bias, mask)


Saved = tuple[Array, Array, Array, Array | None, Array, Array]  # query, key, value, bias, weights, total


def _attention_forward(
    query: Array, key: Array, value: Array, bias: Array | None, mask: Array | None
) -> tuple[Array, Saved]:
    query, key, value = (array.transpose(0, 2, 1, 3) for array in (query, key, value))  # each [B, A, M or N, E]
    weights, total = _unnormalized_weights(query, key, bias, mask)
    weights = weights.astype(value.dtype)
    outputs = multiply(weights, value) / total
    outputs = outputs.transpose(0, 2, 1, 3).astype(value.dtype)  # [B, M, A, E]
    return outputs, (query, key, value, bias, weights, total)


def _unnormalized_weights(
    query: Float[Array, "B A M E"], key: Float[Array, "B A N E"], bias: Array | None, mask: Array | None
) -> tuple[Float[Array, "B A M N"], Float[Array, "B A M 1"]]:
    """(weights, their sums); the sum is 1 for images without any key that may be seen."""
    logits = wide_product("bame,bane->bamn", query / _scale(query), key)
    logits = logits if bias is None else logits + bias.astype(logits.dtype)
    if mask is not None:
        logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(logits.dtype).min)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    if mask is not None:
        weights = jnp.where(mask[:, None, None, :], weights, 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    return weights, total if mask is None else jnp.where(total == 0.0, 1.0, total)


def _attention_backward(saved: Saved, cotangent: Array) -> Operands:
    query, key, value, bias, weights, total = saved
    dtype, scale = value.dtype, _scale(query)
    cotangent = (widened(cotangent).transpose(0, 2, 1, 3) / total).astype(dtype)  # of the weighted sums, [B, A, M, E]
    dvalue = multiply(weights, cotangent, turned=True)
    dweights = wide_product("bame,bane->bamn", cotangent, value)  # [B, A, M, N]
    along = (dweights * weights).sum(axis=-1, keepdims=True) / total  # [B, A, M, 1]
    dlogits = (dweights - along) * weights
    dbias = None
    if bias is not None:
        broadcast = tuple(axis for axis, size in enumerate(bias.shape) if size == 1)
        dbias = dlogits.sum(axis=broadcast, keepdims=True).astype(bias.dtype)
    dlogits = dlogits.astype(dtype)
    dquery = multiply(dlogits, key) / scale
    dkey = multiply(dlogits, query, turned=True) / scale
    dquery, dkey, dvalue = (array.transpose(0, 2, 1, 3).astype(dtype) for array in (dquery, dkey, dvalue))
    return dquery, dkey, dvalue, dbias, None


@own_gradient(_attention_forward, _attention_backward)
def attention_by_products(
    query: Float[Array, "B M A E"],
    key: Float[Array, "B N A E"],
    value: Float[Array, "B N A E"],
    bias: Float[Array, "#B #A #M #N"] | None = None,
    mask: Bool[Array, "B N"] | None = None,
) -> Float[Array, "B M A E"]:
    """As `dot_product_attention`, by two products; accumulates in float32 at least.

    Gradient: for every backend; saves memory and time: it keeps the weights in the operands' dtype, and no outputs.

    Heads come before tokens in the products, and the product with `value` before the normalisation: M x E numbers are
    divided instead of M x N.
    """
    return _attention_forward(query, key, value, bias, mask)[0]


def _with_four_axes(bias: Array | None) -> Array | None:
    return None if bias is None else bias.reshape((1,) * (4 - bias.ndim) + bias.shape)


def _scale(query: Float[Array, "*axes E"]) -> float:
    return np.sqrt(query.shape[-1]).item()
