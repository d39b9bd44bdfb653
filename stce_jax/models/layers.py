"""The transformer's parts but for attention: LayerNorm, MLP, drop path, position embedding.

Shape letters: B batch, N tokens, D model width.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

# DeiT's initialisation: a normal of standard deviation 0.02 cut at +-2, which is at 100 standard deviations.
truncated_normal = nn.initializers.truncated_normal(0.02, lower=-100.0, upper=100.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(inputs, scale, bias, dtype):
    """LayerNorm over the last axis with the ViT's epsilon of 1e-6, computed in float32 at least.

    The variance comes from differences to the mean: flax's default, the mean of squares minus the squared mean, loses
    every digit on a patch of one colour. The gradient is written out because XLA's own, for this form, recomputes the
    mean in every use and takes 1.7 times as long for a whole training step of ViT-S on a CPU. It keeps the inputs,
    which the residual connection keeps anyway, and two numbers a row.

    Args:
      inputs: [..., D], any float dtype.
      scale, bias: [D] float32.
      dtype: of the result.

    Returns:
      [..., D].
    """
    return _layer_norm_forward(inputs, scale, bias, dtype)[0]


def _layer_norm_forward(inputs, scale, bias, dtype):
    wide = widened(inputs)
    mean = wide.mean(axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(wide - mean).mean(axis=-1, keepdims=True) + 1e-6)  # [..., 1]
    outputs = (wide - mean) * inverse * scale + bias
    return outputs.astype(dtype), (inputs, scale, mean, inverse)


def _layer_norm_backward(dtype, saved, cotangent):
    del dtype
    inputs, scale, mean, inverse = saved
    wide, cotangent = map(widened, recompute_from(inputs, cotangent))
    normalized = (wide - mean) * inverse
    rows = tuple(range(inputs.ndim - 1))
    scale_gradient, bias_gradient = (cotangent * normalized).sum(axis=rows), cotangent.sum(axis=rows)
    cotangent *= scale
    along = (cotangent * normalized).mean(axis=-1, keepdims=True)
    gradient = inverse * (cotangent - cotangent.mean(axis=-1, keepdims=True) - normalized * along)
    return gradient.astype(inputs.dtype), scale_gradient, bias_gradient


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


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


@jax.custom_vjp
def gelu(inputs):
    """The exact GELU, x * Phi(x), by the error function, in float32 at least; keeps the dtype.

    flax and JAX write it with erfc, which keeps digits of values that vanish beside all others, and for which XLA
    computes two branches: an MLP of ViT-S takes a quarter longer to train on a CPU. The backward pass keeps the inputs
    alone and computes the error function anew; XLA would keep it, too.
    """
    return (widened(inputs) * normal_distribution(widened(inputs))).astype(inputs.dtype)


def _gelu_backward(inputs, cotangent):
    wide, cotangent = map(widened, recompute_from(inputs, cotangent))
    return ((cotangent * gelu_derivative(wide)).astype(inputs.dtype),)


gelu.defvjp(lambda inputs: (gelu(inputs), inputs), _gelu_backward)


def gelu_derivative(inputs):
    """The derivative of `gelu`: Phi(x) + x * phi(x)."""
    density = np.sqrt(0.5 / np.pi).item() * jnp.exp(-0.5 * jnp.square(inputs))
    return normal_distribution(inputs) + inputs * density


def normal_distribution(inputs):
    """Phi(x), the share of a standard normal below x."""
    return 0.5 * (1.0 + jax.lax.erf(inputs * np.sqrt(0.5).item()))


def widened(inputs):
    """As float32, or wider where they are wider."""
    return inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))


def recompute_from(saved, cotangent):
    """(saved, cotangent) of a backward pass, such that what is computed from `saved` is computed anew, and not before.

    XLA would otherwise find that the forward pass has computed the same and keep that, or compute it long before the
    cotangent is there; either takes memory. (For CPUs it orders the work without the barrier, and may still be early.)
    """
    return jax.lax.optimization_barrier((saved, cotangent))


@jax.custom_vjp
def product(inputs, kernel):
    """A linear layer's product, [..., n] and [n, m] -> [..., m], with a kernel's gradient that suits CPUs.

    JAX derives the kernel's gradient as its transpose, [m, n], and transposes that. With several devices, whose
    gradients are summed in between, XLA for CPUs does so number by number, 2% of a training step of ViT-S. There it is
    written as [n, m] from the start; other backends keep JAX's form.
    """
    return _product(inputs, kernel)


def _product(inputs, kernel):
    return jax.lax.dot_general(inputs, kernel, (((inputs.ndim - 1,), (0,)), ((), ())))


def _product_backward(saved, cotangent):
    inputs, kernel = saved
    leading = tuple(range(inputs.ndim - 1))

    def as_kernel(inputs, cotangent):
        return jax.lax.dot_general(inputs, cotangent, ((leading, leading), ((), ())))

    def transposed(inputs, cotangent):
        return jax.linear_transpose(functools.partial(_product, inputs), kernel)(cotangent)[0]

    (inputs_gradient,) = jax.linear_transpose(lambda inputs: _product(inputs, kernel), inputs)(cotangent)
    return inputs_gradient, jax.lax.platform_dependent(inputs, cotangent, cpu=as_kernel, default=transposed)


product.defvjp(lambda inputs, kernel: (_product(inputs, kernel), (inputs, kernel)), _product_backward)


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
