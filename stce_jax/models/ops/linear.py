"""Products of matrices, and that of a linear layer.

Shape letters: K numbers that are multiplied and added up for each of M x N.
"""

import functools
from typing import Any

import jax
from jaxtyping import Array, Float

from stce_jax.models.ops import onednn
from stce_jax.models.ops.activations import gelu, gelu_plain
from stce_jax.models.ops.gradients import own_gradient
from stce_jax.models.ops.ordering import after_here
from stce_jax.models.ops.precision import wide_product
from stce_jax.platform.backends import by_backend
from stce_jax.platform.cpu_library import call_onednn

FEWEST_MULTIPLY_ADDS = 2**20  # of a product by oneDNN; with less, preparing the call takes longer


def multiply(
    left: Float[Array, "*batch M K"], right: Float[Array, "*batch K N"], *, turned: bool = False
) -> Float[Array, "*batch M N"]:
    """The product of two matrices, or of each pair of a batch; summed and returned in float32 at least.

    Where oneDNN serves, by it. Gradient: JAX's own, but that of the right operand is by oneDNN, too.

    Args:
      turned: the left matrices are given as [K, M].
    """
    plain = functools.partial(multiply_plain, turned=turned)
    if not onednn.serves(left, right) or left.size * right.shape[-1] < FEWEST_MULTIPLY_ADDS:
        return plain(left, right)
    return by_backend(left, right, cpu=functools.partial(_onednn_product.bind, turned=turned), default=plain)


def multiply_plain(
    left: Float[Array, "*batch M K"], right: Float[Array, "*batch K N"], *, turned: bool = False
) -> Float[Array, "*batch M N"]:
    """The plain form of `multiply`."""
    return wide_product("...km,...kn->...mn" if turned else "...mk,...kn->...mn", left, right)


def _by_onednn(output: Any, left: Array, right: Array, *, turned: bool) -> Array:
    return call_onednn("matmul", {"onednn_matmul_config": {"transpose_a": turned}}, output, left, right)


def _to_left(cotangent: Array, left: Any, right: Array, *, turned: bool) -> Array:
    del left
    return wide_product("...mn,...kn->...km" if turned else "...mn,...kn->...mk", cotangent, right)


def _to_right(cotangent: Array, left: Array, right: Any, *, turned: bool) -> Array:
    del right
    return multiply(left, cotangent, turned=not turned)


_onednn_product = onednn.bilinear("product", multiply_plain, _by_onednn, _to_left, _to_right)


def product_plain(inputs: Float[Array, "*rows n"], kernel: Float[Array, "n m"]) -> Float[Array, "*rows m"]:
    """The plain form of `product`."""
    return jax.lax.dot_general(inputs, kernel, (((inputs.ndim - 1,), (0,)), ((), ())))


def _product(inputs: Array, kernel: Array) -> Array:
    if not onednn.serves(inputs, kernel):
        return product_plain(inputs, kernel)
    return multiply(inputs.reshape(-1, inputs.shape[-1]), kernel).reshape(*inputs.shape[:-1], kernel.shape[1])


def _product_forward(inputs: Array, kernel: Array, biased: bool) -> tuple[Array, tuple[Array, Array]]:
    del biased
    return _product(inputs, kernel), (inputs, kernel)


def _product_backward(biased: bool, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    inputs, kernel = saved

    def as_kernel(inputs: Array, cotangent: Array) -> Array:
        if not onednn.serves(inputs, cotangent):
            leading = tuple(range(inputs.ndim - 1))
            return jax.lax.dot_general(inputs, cotangent, ((leading, leading), ((), ())))
        rows, cotangents = (array.reshape(-1, array.shape[-1]) for array in (inputs, cotangent))
        return multiply(rows, cotangents, turned=True)

    def transposed(inputs: Array, cotangent: Array) -> Array:
        return jax.linear_transpose(lambda kernel: product_plain(inputs, kernel), kernel)(cotangent)[0]

    (dinputs,) = jax.linear_transpose(lambda inputs: product_plain(inputs, kernel), inputs)(cotangent)
    dkernel = by_backend(inputs, cotangent, cpu=as_kernel, default=transposed)
    # JAX has the bias's gradient besides, and XLA computes it once for both.
    gradients = (dkernel, cotangent.sum(axis=tuple(range(cotangent.ndim - 1)))) if biased else dkernel
    return after_here(gradients, dinputs), dkernel


@own_gradient(_product_forward, _product_backward, nondiff_argnums=(2,))
def product(inputs: Float[Array, "*rows n"], kernel: Float[Array, "n m"], biased: bool) -> Float[Array, "*rows m"]:
    """A linear layer's product.

    Gradient: for CPUs; saves the transposition of the kernel's gradient, and memory. Other backends keep JAX's form.

    JAX derives the kernel's gradient as its transpose, [m, n], and transposes that. With several devices, whose
    gradients are summed in between, XLA for CPUs does so number by number, 2% of a training step of ViT-S. There it is
    written as [n, m] from the start. On a single device the gradients of the layer's parameters come before the
    backward pass goes on: XLA would leave many of them for the end, and keep what they need.

    Args:
      biased: whether a bias is added to the product.
    """
    return _product(inputs, kernel)


def activated_product_plain(
    inputs: Float[Array, "*rows n"], kernel: Float[Array, "n m"], biased: bool
) -> Float[Array, "*rows m"]:
    """The plain form of `activated_product`."""
    return product(gelu(inputs), kernel, biased)


def _activated_product_forward(inputs: Array, kernel: Array, biased: bool) -> tuple[Array, tuple[Array, Array, Array]]:
    del biased
    activated = gelu_plain(inputs)
    return _product(activated, kernel), (inputs, activated, kernel)


def _activated_product_backward(
    biased: bool, saved: tuple[Array, Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    inputs, activated, kernel = saved
    inputs = after_here(cotangent, inputs)
    activated = by_backend(
        inputs, activated, cpu=lambda inputs, _: gelu_plain(inputs), default=lambda _, activated: activated
    )
    dactivated, dkernel = _product_backward(biased, (activated, kernel), cotangent)
    _, pull_back = jax.vjp(gelu, inputs)
    return *pull_back(dactivated), dkernel


@own_gradient(_activated_product_forward, _activated_product_backward, nondiff_argnums=(2,))
def activated_product(
    inputs: Float[Array, "*rows n"], kernel: Float[Array, "n m"], biased: bool
) -> Float[Array, "*rows m"]:
    """A linear layer's product behind the exact GELU.

    Gradient: for CPUs; saves memory, for on a single device it keeps the inputs alone, and computes the GELU again.
    Other backends keep both: there an array more is a pass over memory more.

    Args:
      biased: as of `product`.
    """
    return _product(gelu_plain(inputs), kernel)
