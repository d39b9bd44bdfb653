"""Exact softmax attention, in the form that each backend computes fastest.

Shape letters: B batch, N tokens, D model width, A attention heads, E width of a head.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from stce_jax.models.ops.precision import widened

TOKENS_MULTIPLE = 8  # cuDNN's gradient wants an even number of tokens, products on GPUs a multiple of 8


def padding(count, heads, width, dtype):
    """How many tokens that mean nothing to append to `count`, so that attention of `heads` over [B, N, D] is fastest.

    Those who append them once, before the first block, spare every block from it.
    """
    return -count % TOKENS_MULTIPLE if _has_fused_kernel(width // heads, dtype) else 0


def _has_fused_kernel(width, dtype):
    """Whether this process's GPUs have cuDNN's attention for such heads: Ampere or newer, 16 bits, not too wide."""
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16) or width % 8 or width > 128:
        return False
    capability = getattr(jax.local_devices()[0], "compute_capability", "0")  # "9.0"; of GPUs alone
    return float(capability) >= 8.0


def dot_product_attention(query, key, value, count=None, *, bias=None, mask=None):
    """Exact softmax attention: softmax(<q, k> / sqrt(E)) v, for each head.

    In 16 bits, on CUDA devices that have it, cuDNN's fused kernel; elsewhere, and where there are fewer queries than
    keys, products and their written-out gradient.

    Args:
      query: [B, N, A, E], or fewer of the N, the first.
      key, value: [B, N, A, E] in the query's dtype.
      count: tokens that mean something, the first of N; None: all of them. The others are seen by none.

    Returns:
      As the query in shape and dtype; for the tokens beyond `count`, zeros.
    """
    count = key.shape[1] if count is None else count
    forms = {"default": functools.partial(_by_products, count=count)}
    if query.shape == key.shape and _has_fused_kernel(query.shape[-1], query.dtype):
        forms["cuda"] = functools.partial(_by_cudnn, count=count)
    return jax.lax.platform_dependent(query, key, value, **forms)


def _by_products(query, key, value, *, count):
    extra = max(0, query.shape[1] - count)
    outputs = attention_by_products(*(array[:, :count] for array in (query, key, value)))
    return jnp.pad(outputs, ((0, 0), (0, extra), (0, 0), (0, 0))) if extra else outputs


def _by_cudnn(query, key, value, *, count):
    batch, given, _, _ = query.shape
    if extra := -given % TOKENS_MULTIPLE:
        query, key, value = (jnp.pad(array, ((0, 0), (0, extra), (0, 0), (0, 0))) for array in (query, key, value))
    lengths = jnp.full((batch,), count, jnp.int32) if count < given + extra else None
    options = {"query_seq_lengths": lengths, "key_value_seq_lengths": lengths, "implementation": "cudnn"}
    return jax.nn.dot_product_attention(query, key, value, **options)[:, :given]


@jax.custom_vjp
def attention_by_products(query, key, value):
    """As `dot_product_attention`, where all tokens mean something.

    On any backend, in any float dtype; accumulates in float32 at least.

    Heads come before tokens in the products, and the product with `value` before the normalisation: N x E numbers are
    divided instead of N x N. The backward pass keeps the weights, and no outputs.
    """
    return _attention_forward(query, key, value)[0]


def _attention_forward(query, key, value):
    query, key, value = (array.transpose(0, 2, 1, 3) for array in (query, key, value))  # each [B, A, N, E]
    weights, total = _unnormalized_weights(query, key)
    weights = weights.astype(value.dtype)
    outputs = _product("banm,bame->bane", weights, value) / total
    outputs = outputs.transpose(0, 2, 1, 3).astype(value.dtype)  # [B, N, A, E]
    return outputs, (query, key, value, weights, total)


def _unnormalized_weights(query, key):
    """[B, A, N, E] twice -> (weights [B, A, N, N], their sums [B, A, N, 1])."""
    logits = _product("bane,bame->banm", query / _scale(query), key)
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights, weights.sum(axis=-1, keepdims=True)


def _attention_backward(saved, cotangent):
    query, key, value, weights, total = saved
    dtype, scale = value.dtype, _scale(query)
    cotangent = (widened(cotangent).transpose(0, 2, 1, 3) / total).astype(dtype)  # of the weighted sums, [B, A, N, E]
    of_value = _product("banm,bane->bame", weights, cotangent)
    of_weights = _product("bane,bame->banm", cotangent, value)  # [B, A, N, N]
    along = (of_weights * weights).sum(axis=-1, keepdims=True) / total  # [B, A, N, 1]
    of_logits = ((of_weights - along) * weights).astype(dtype)
    of_query = _product("banm,bame->bane", of_logits, key) / scale
    of_key = _product("banm,bane->bame", of_logits, query) / scale
    return tuple(array.transpose(0, 2, 1, 3).astype(dtype) for array in (of_query, of_key, of_value))


attention_by_products.defvjp(_attention_forward, _attention_backward)


def _scale(query):
    return np.sqrt(query.shape[-1]).item()


def _product(subscripts, left, right):
    accumulate = jnp.promote_types(left.dtype, jnp.float32)
    return jnp.einsum(subscripts, left, right, preferred_element_type=accumulate)


def attention_weights(query, key, *, bias=None, mask=None):
    """softmax(<q, k> / sqrt(E)): [B, N, A, E] twice -> [B, A, N, N], float32 or wider; each row sums to one."""
    query, key = (array.transpose(0, 2, 1, 3) for array in (query, key))
    weights, total = _unnormalized_weights(query, key)
    return weights / total
