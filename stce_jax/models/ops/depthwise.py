"""3x3 convolutions of each channel by itself.

Shape letters: B batch, H W feature height and width, h w the result's, C channels.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stce_jax.models.ops.convolution import woven
from stce_jax.models.ops.gradients import own_gradient
from stce_jax.models.ops.precision import of_rank, widened
from stce_jax.platform.backends import by_backend


def depthwise_convolution_plain(
    inputs: Float[Array, "B H W C"], kernel: Float[Array, "3 3 1 C"], stride: int
) -> Float[Array, "B h w C"]:
    """The plain form of `depthwise_convolution`."""
    return jax.lax.conv_general_dilated(
        inputs,
        kernel,
        (stride, stride),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=inputs.shape[-1],
    )


def _forward(inputs: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    if stride not in (1, 2):
        raise ValueError(f"a depthwise convolution has a stride of 1 or 2, not {stride}")

    def by_shifts(inputs: Array, kernel: Array) -> Array:
        return _by_shifts(inputs, kernel)[:, ::stride, ::stride]  # XLA computes no other places

    plain = functools.partial(depthwise_convolution_plain, stride=stride)
    return by_backend(inputs, kernel, cpu=by_shifts, default=plain), (inputs, kernel)


def _backward(stride: int, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    inputs, kernel = saved

    def by_shifts(inputs: Array, kernel: Array, cotangent: Array) -> tuple[Array, Array]:
        dkernel = _kernel_gradient(inputs, cotangent, stride).astype(kernel.dtype)
        if stride == 1:
            return _by_shifts(cotangent, kernel[::-1, ::-1]), dkernel
        return _by_parity(cotangent, kernel, inputs.shape), dkernel

    def plain(inputs: Array, kernel: Array, cotangent: Array) -> tuple[Array, Array]:
        return jax.vjp(functools.partial(depthwise_convolution_plain, stride=stride), inputs, kernel)[1](cotangent)

    return by_backend(inputs, kernel, cotangent, cpu=by_shifts, default=plain)


@own_gradient(_forward, _backward, nondiff_argnums=(2,))
def depthwise_convolution(
    inputs: Float[Array, "B H W C"], kernel: Float[Array, "3 3 1 C"], stride: int
) -> Float[Array, "B h w C"]:
    """A 3x3 convolution of each channel by itself, padded by 1 on all sides: h = ceil(H / stride). Both of one dtype.

    Gradient: for CPUs; saves time, see below. Other backends have kernels of their own and keep them.

    XLA for CPUs takes the channels one by one: 220 ms for 4 x 56 x 56 x 256 numbers on two cores, and 1.5 s for the
    kernel's gradient. Here the nine shifted maps are multiplied and added in one pass, 4 ms; and the kernel's gradient
    is added up row by row of the map, 14 ms, for XLA sums over all axes but the last without vector instructions.
    With a stride of 2 the gradient of the inputs is computed for even and odd rows and columns apart, as that of
    `convolution.halving_convolution`: a quarter of the multiplications.

    Args:
      stride: 1 or 2, by position.

    Raises:
      ValueError: the stride is another.
    """
    return _forward(inputs, kernel, stride)[0]


def depthwise_residual_plain(
    inputs: Float[Array, "B H W C"], kernel: Float[Array, "3 3 1 C"], bias: Float[Array, "C"]
) -> Float[Array, "B H W C"]:
    """The plain form of `depthwise_residual`."""
    return inputs + (depthwise_convolution_plain(inputs, kernel, 1) + of_rank(4, bias))


def _residual_forward(inputs: Array, kernel: Array, bias: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    def by_shifts(inputs: Array, kernel: Array, bias: Array) -> Array:
        return _residual_by_shifts(inputs, kernel, widened(of_rank(4, bias)))

    outputs = by_backend(inputs, kernel, bias, cpu=by_shifts, default=depthwise_residual_plain)
    return outputs, (inputs, kernel, bias)


def _residual_backward(saved: tuple[Array, Array, Array], cotangent: Array) -> tuple[Array, Array, Array]:
    def by_shifts(inputs: Array, kernel: Array, bias: Array, cotangent: Array) -> tuple[Array, Array, Array]:
        dkernel = _kernel_gradient(inputs, cotangent, 1).astype(kernel.dtype)
        dinputs = _residual_by_shifts(cotangent, kernel[::-1, ::-1])
        return dinputs, dkernel, cotangent.sum(axis=(0, 1, 2)).astype(bias.dtype)

    def plain(inputs: Array, kernel: Array, bias: Array, cotangent: Array) -> tuple[Array, Array, Array]:
        return jax.vjp(depthwise_residual_plain, inputs, kernel, bias)[1](cotangent)

    return by_backend(*saved, cotangent, cpu=by_shifts, default=plain)


@own_gradient(_residual_forward, _residual_backward)
def depthwise_residual(
    inputs: Float[Array, "B H W C"], kernel: Float[Array, "3 3 1 C"], bias: Float[Array, "C"]
) -> Float[Array, "B H W C"]:
    """x + `depthwise_convolution` of x + bias, with a stride of 1. All of one dtype.

    Gradient: for CPUs; saves time, see `depthwise_convolution`. And x is read from the padded map that the convolution
    reads anyway, so nothing else needs x, and XLA computes it (a GELU, say) where it is padded: one pass for three.
    """
    return _residual_forward(inputs, kernel, bias)[0]


def _padded(inputs: Array) -> Array:
    """One row and column of zeros around; an array of its own, for XLA would else pad in each of the nine reads."""
    return jax.lax.optimization_barrier(jnp.pad(inputs, ((0, 0), (1, 1), (1, 1), (0, 0))))


def _by_shifts(inputs: Array, kernel: Array) -> Array:
    return _sum_of_shifts(_padded(inputs), kernel).astype(inputs.dtype)


def _residual_by_shifts(inputs: Array, kernel: Array, bias: Array | float = 0.0) -> Array:
    padded = _padded(inputs)
    return (widened(padded[:, 1:-1, 1:-1]) + (_sum_of_shifts(padded, kernel) + bias)).astype(inputs.dtype)


def _sum_of_shifts(padded: Float[Array, "B H+2 W+2 C"], kernel: Array) -> Float[Array, "B H W C"]:
    """The nine shifted maps, each times its number of the kernel, in float32 at least."""
    rows, columns = padded.shape[1] - 2, padded.shape[2] - 2
    products = (
        widened(padded[:, down : down + rows, right : right + columns])
        * widened(kernel[down : down + 1, right : right + 1])
        for down in range(3)
        for right in range(3)
    )
    return functools.reduce(jnp.add, products)


def _kernel_gradient(inputs: Float[Array, "B H W C"], cotangent: Float[Array, "B h w C"], stride: int) -> Array:
    """[3, 3, 1, C], in float32 at least; the images stay apart until the end, as they may lie on several devices."""
    _, rows, columns, channels = cotangent.shape
    padded = _padded(inputs)

    def of_row(row: Array | int) -> list[Array]:
        """What one row of the cotangent gives to each of the nine numbers of a channel, [B, w, C]."""
        met = widened(jax.lax.dynamic_slice_in_dim(padded, stride * row, 3, axis=1))  # [B, 3, W + 2, C]
        own = widened(jax.lax.dynamic_slice_in_dim(cotangent, row, 1, axis=1)[:, 0])  # [B, w, C]
        ends = [right + stride * (columns - 1) + 1 for right in range(3)]
        return [met[:, down, right : ends[right] : stride] * own for down in range(3) for right in range(3)]

    def add_row(sums: list[Array], row: Array) -> tuple[list[Array], None]:
        return jax.tree.map(jnp.add, sums, of_row(row)), None

    sums, _ = jax.lax.scan(add_row, of_row(0), jnp.arange(1, rows))
    return jnp.stack([total.sum(axis=(0, 1)) for total in sums]).reshape(3, 3, 1, channels)


def _by_parity(cotangent: Array, kernel: Array, shape: tuple[int, ...]) -> Array:
    """With a stride of 2, the inputs' gradient, [B, H, W, C] = `shape`: of even and odd rows and columns apart."""
    _, rows, columns, _ = cotangent.shape
    padded = _padded(cotangent)
    met = (((1, 1),), ((1, 2), (2, 0)))  # of an even and an odd place: (the first in `padded`, the kernel's number)

    def of_parity(down: int, across: int) -> Array:
        products = (
            widened(padded[:, below : below + rows, right : right + columns])
            * widened(kernel[row : row + 1, column : column + 1])
            for below, row in met[down]
            for right, column in met[across]
        )
        return functools.reduce(jnp.add, products).astype(cotangent.dtype)

    return woven([of_parity(down, across) for down in range(2) for across in range(2)], shape)
