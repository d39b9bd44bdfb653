"""The exact GELU and its derivative."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stce_jax.models.ops.gradients import own_gradient
from stce_jax.models.ops.precision import recompute_from, widened


def normal_distribution(inputs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Phi(x), the cumulative distribution of the standard normal."""
    return 0.5 * (1.0 + jax.lax.erf(inputs * np.sqrt(0.5).item()))


def gelu_plain(inputs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x * Phi(x) in float32 at least, in the inputs' dtype; the plain form of `gelu`."""
    return (widened(inputs) * normal_distribution(widened(inputs))).astype(inputs.dtype)


def gelu_derivative(inputs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The derivative of `gelu`: Phi(x) + x * phi(x)."""
    density = np.sqrt(0.5 / np.pi).item() * jnp.exp(-0.5 * jnp.square(inputs))
    return normal_distribution(inputs) + inputs * density


def _gelu_forward(inputs: Array) -> tuple[Array, Array]:
    return gelu_plain(inputs), inputs


def _gelu_backward(inputs: Array, cotangent: Array) -> tuple[Array]:
    wide, cotangent = map(widened, recompute_from(inputs, cotangent))
    return ((cotangent * gelu_derivative(wide)).astype(inputs.dtype),)


@own_gradient(_gelu_forward, _gelu_backward)
def gelu(inputs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The exact GELU, x * Phi(x), by the error function, in float32 at least; keeps the dtype.

    Gradient: for every backend; saves memory, for it keeps the inputs alone and recomputes the error function, which
    XLA would keep, too.

    flax and JAX write GELU with erfc, which keeps digits of values that vanish beside all others, and for which XLA
    computes two branches: an MLP of ViT-S takes a quarter longer to train on a CPU.
    """
    return gelu_plain(inputs)
