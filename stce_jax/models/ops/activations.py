"""The exact GELU and its derivative, QuickGELU, and the gate of SwiGLU."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stce_jax.models.ops.gradients import own_gradient
from stce_jax.models.ops.ordering import recompute_from
from stce_jax.models.ops.precision import widened

QUICK = 1.702  # of `quick_gelu`


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


def quick_gelu_plain(inputs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x * sigmoid(1.702 x) in float32 at least, in the inputs' dtype; the plain form of `quick_gelu`."""
    wide = widened(inputs)
    return (wide * jax.nn.sigmoid(QUICK * wide)).astype(inputs.dtype)


def _quick_gelu_forward(inputs: Array) -> tuple[Array, Array]:
    return quick_gelu_plain(inputs), inputs


def _quick_gelu_backward(inputs: Array, cotangent: Array) -> tuple[Array]:
    wide, cotangent = map(widened, recompute_from(inputs, cotangent))
    share = jax.nn.sigmoid(QUICK * wide)
    return ((cotangent * (share + QUICK * wide * share * (1.0 - share))).astype(inputs.dtype),)


@own_gradient(_quick_gelu_forward, _quick_gelu_backward)
def quick_gelu(inputs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """QuickGELU, x * sigmoid(1.702 x), the approximation of GELU in CvT's and CLIP's code; keeps the dtype.

    Gradient: for every backend; saves memory, as that of `gelu`.
    """
    return quick_gelu_plain(inputs)


def silu_gate_plain(gate: Float[Array, "*shape"], values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """SiLU(gate) * values in float32 at least, in the values' dtype; the plain form of `silu_gate`."""
    return (jax.nn.silu(widened(gate)) * widened(values)).astype(values.dtype)


def _silu_gate_forward(gate: Array, values: Array) -> tuple[Array, tuple[Array, Array]]:
    return silu_gate_plain(gate, values), (gate, values)


def _silu_gate_backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    gate, values = saved
    wide, cotangent = map(widened, recompute_from(gate, cotangent))
    share = jax.nn.sigmoid(wide)
    dgate = cotangent * widened(values) * share * (1.0 + wide * (1.0 - share))
    return dgate.astype(gate.dtype), (cotangent * wide * share).astype(values.dtype)


@own_gradient(_silu_gate_forward, _silu_gate_backward)
def silu_gate(gate: Float[Array, "*shape"], values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """SiLU(gate) * values, with SiLU(x) = x * sigmoid(x): the gate of SwiGLU (Shazeer 2020, arXiv 2002.05202).

    Gradient: for every backend; saves memory, for it keeps the two inputs alone and recomputes the sigmoid.
    """
    return silu_gate_plain(gate, values)
