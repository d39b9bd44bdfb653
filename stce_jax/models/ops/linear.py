"""The product of a linear layer."""

import jax
from jaxtyping import Array, Float

from stce_jax.models.ops.gradients import own_gradient
from stce_jax.platform.backends import by_backend


def product_plain(inputs: Float[Array, "*rows n"], kernel: Float[Array, "n m"]) -> Float[Array, "*rows m"]:
    """The plain form of `product`."""
    return jax.lax.dot_general(inputs, kernel, (((inputs.ndim - 1,), (0,)), ((), ())))


def _product_forward(inputs: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return product_plain(inputs, kernel), (inputs, kernel)


def _product_backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    inputs, kernel = saved
    leading = tuple(range(inputs.ndim - 1))

    def as_kernel(inputs: Array, cotangent: Array) -> Array:
        return jax.lax.dot_general(inputs, cotangent, ((leading, leading), ((), ())))

    def transposed(inputs: Array, cotangent: Array) -> Array:
        return jax.linear_transpose(lambda kernel: product_plain(inputs, kernel), kernel)(cotangent)[0]

    (dinputs,) = jax.linear_transpose(lambda inputs: product_plain(inputs, kernel), inputs)(cotangent)
    return dinputs, by_backend(inputs, cotangent, cpu=as_kernel, default=transposed)


@own_gradient(_product_forward, _product_backward)
def product(inputs: Float[Array, "*rows n"], kernel: Float[Array, "n m"]) -> Float[Array, "*rows m"]:
    """A linear layer's product.

    Gradient: for CPUs; saves the transposition of the kernel's gradient. Other backends keep JAX's form.

    JAX derives the kernel's gradient as its transpose, [m, n], and transposes that. With several devices, whose
    gradients are summed in between, XLA for CPUs does so number by number, 2% of a training step of ViT-S. There it is
    written as [n, m] from the start.
    """
    return product_plain(inputs, kernel)
