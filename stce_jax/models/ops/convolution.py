"""Convolutions.

Shape letters: B batch, H W feature height and width, C channels, F features.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stce_jax.models.ops import onednn
from stce_jax.models.ops.forms import chosen
from stce_jax.models.ops.gradients import own_gradient
from stce_jax.models.ops.linear import multiply, multiply_plain
from stce_jax.models.ops.precision import widened
from stce_jax.platform.backends import by_backend
from stce_jax.platform.cpu_library import call_onednn

Padding = tuple[tuple[int, int], tuple[int, int]]  # (above, below), (left, right)

LARGEST_SIDE = 16  # of a kernel by oneDNN, which has no fast form for one as large as a map
FEWEST_CHANNELS = 8  # of the inputs, for a product for each place of a kernel
FEW_FEATURES = 16  # with fewer channels and no more features than these XLA's own gradient is faster


def convolve(
    inputs: Float[Array, "B H W C"], kernel: Float[Array, "rows columns C F"], stride: int, padding: Padding
) -> Float[Array, "B h w F"]:
    """A convolution with zeros as padding; operands of one dtype, which the result keeps. On a CPU by oneDNN.

    Gradient: JAX's own, but where oneDNN serves: that of the inputs at stride 1 is a convolution by oneDNN, too, and
    that of the kernel a product for each of its places, of all that the place meets with the cotangent.
    """
    plain = functools.partial(convolve_plain, stride=stride, padding=padding)
    if not onednn.serves(inputs, kernel) or max(kernel.shape[:2]) > LARGEST_SIDE or np.min(padding) < 0:
        return plain(inputs, kernel)
    by_onednn = functools.partial(_convolution.bind, stride=stride, padding=padding)
    return by_backend(inputs, kernel, cpu=by_onednn, default=plain)


def convolve_plain(
    inputs: Float[Array, "B H W C"], kernel: Float[Array, "rows columns C F"], stride: int, padding: Padding
) -> Float[Array, "B h w F"]:
    """The plain form of `convolve`."""
    return jax.lax.conv_general_dilated(
        inputs, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _by_onednn(output: Any, inputs: Array, kernel: Array, *, stride: int, padding: Padding) -> Array:
    (above, below), (left, right) = padding
    maps = {"dims": 4, "data": {"batch_dim": 0, "feature_dim": 3, "spatial_dims": [1, 2]}}
    window = {
        "size": kernel.shape[:2],
        "pad_left": (above, left),
        "pad_right": (below, right),
        "strides": (stride, stride),
        "window_dilations": (1, 1),
    }
    config = {
        "dims": 4,
        "input": maps,
        "kernel": {"dims": 4, "filter": {"input_feature_dim": 2, "output_feature_dim": 3, "spatial_dims": [0, 1]}},
        "output": maps,
        "window": window,
        "feature_groups": 1,
    }
    return call_onednn("convolution", {"onednn_conv_config": config}, output, inputs, kernel)


def _to_inputs(cotangent: Array, inputs: Any, kernel: Array, *, stride: int, padding: Padding) -> Array:
    if stride != 1:
        plain = functools.partial(convolve_plain, kernel=kernel, stride=stride, padding=padding)
        return jax.linear_transpose(plain, inputs.aval)(cotangent)[0]
    sides = zip(kernel.shape[:2], padding, strict=True)
    down, across = ((side - 1 - before, side - 1 - behind) for side, (before, behind) in sides)
    return convolve(cotangent, kernel[::-1, ::-1].transpose(0, 1, 3, 2), 1, (down, across))


def _to_kernel(cotangent: Array, inputs: Array, kernel: Any, *, stride: int, padding: Padding) -> Array:
    rows, columns, channels, features = kernel.aval.shape
    if channels < FEWEST_CHANNELS and features <= FEW_FEATURES:
        plain = functools.partial(convolve_plain, inputs, stride=stride, padding=padding)
        return jax.linear_transpose(plain, kernel.aval)(cotangent)[0]
    return _by_products(inputs, cotangent, (rows, columns), stride, padding)


def _by_products(
    inputs: Float[Array, "B H W C"],
    cotangent: Float[Array, "B h w F"],
    sides: tuple[int, int],
    stride: int,
    padding: Padding,
) -> Array:
    """A kernel's gradient, [*sides, C, F], in float32 at least.

    For each of its places it is the product of all inputs that the place meets, and the cotangent. Of few
    channels it is one product for all places, whose inputs are joined first.
    """
    _, rows, columns, features = cotangent.shape
    channels = inputs.shape[-1]
    padded = jnp.pad(inputs, ((0, 0), *padding, (0, 0)))
    ends = stride * (rows - 1) + 1, stride * (columns - 1) + 1

    def met(down: int, right: int) -> Array:
        return padded[:, down : down + ends[0] : stride, right : right + ends[1] : stride]  # [B, h, w, C]

    places = [met(down, right) for down in range(sides[0]) for right in range(sides[1])]
    cotangent = cotangent.reshape(-1, features)
    if channels < FEWEST_CHANNELS:
        joined = jnp.concatenate(places, axis=-1)
        product = multiply_plain(joined.reshape(-1, joined.shape[-1]), cotangent, turned=True)
        return product.reshape(*sides, channels, features)
    products = [multiply(place.reshape(-1, channels), cotangent, turned=True) for place in places]
    return jnp.stack(products).reshape(*sides, channels, features)


_convolution = onednn.bilinear("convolution", convolve_plain, _by_onednn, _to_inputs, _to_kernel)


def halving_convolution_plain(
    inputs: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C F"]
) -> Float[Array, "B H2 W2 F"]:
    """The plain form of `halving_convolution`."""
    return convolve_plain(inputs, kernel, 2, ((1, 1), (1, 1)))


def _halving_convolution_forward(inputs: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _halving(inputs, kernel), (inputs, kernel)


def _halving_convolution_backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    inputs, kernel = saved
    _, pull_back = jax.vjp(_halving, inputs, kernel)

    def on_cpus(cotangent: Array) -> tuple[Array, Array]:
        wide = inputs.shape[-1] >= 32 and kernel.shape[-1] > 64  # with less, a convolution is as fast, or faster
        if wide and not onednn.serves(inputs, kernel):
            dkernel = _by_products(inputs, cotangent, (3, 3), 2, ((1, 1), (1, 1))).astype(kernel.dtype)
        else:
            dkernel = pull_back(cotangent)[1]
        return _by_parity(cotangent, kernel, inputs.shape), dkernel

    return by_backend(cotangent, cpu=on_cpus, default=pull_back)


@own_gradient(_halving_convolution_forward, _halving_convolution_backward)
def halving_convolution(inputs: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C F"]) -> Float[Array, "B H2 W2 F"]:
    """A convolution of stride 2, padded by 1 on all sides: H2 = ceil(H / 2), W2 = ceil(W / 2). Both of one dtype.

    Gradient: for CPUs; saves three of four multiplications. Other backends have kernels of their own and keep them.

    The gradient of the inputs is a convolution of the cotangent with zeros put between its rows and columns. XLA for
    CPUs multiplies with those zeros, so there even and odd rows and columns are computed apart, four convolutions
    without any zeros. The gradient of a wide kernel is nine products of matrices, one for each of its places: as a
    convolution, whose results are maps of 3x3, it is slower. And from an image's three channels to a few it computes
    over blocks of 2x2 pixels, unless oneDNN serves, whose convolutions and products these are then.
    """
    return _halving(inputs, kernel)


def _by_parity(cotangent: Array, kernel: Array, shape: tuple[int, ...]) -> Array:
    """The inputs' gradient, [B, H, W, C] = `shape`, from the cotangent [B, ceil(H / 2), ceil(W / 2), features].

    Input row 2i meets the kernel's middle row alone, in output row i; input row 2i + 1 the last in output row i and
    the first in output row i + 1. The same holds for columns.
    """
    kernel = kernel.transpose(0, 1, 3, 2)  # [3, 3, features, C]
    met = ((slice(1, 2), (0, 0)), (slice(2, None, -2), (0, 1)))  # the kernel's rows in order, and the padding
    parts = [
        convolve(cotangent, kernel[down, across], 1, (below, right)) for down, below in met for across, right in met
    ]
    return woven(parts, shape)


def woven(parts: list[Float[Array, "B h w C"]], shape: tuple[int, ...]) -> Float[Array, "B H W C"]:
    """The map of `shape` of which these are even rows' even and odd columns, then the same of odd rows."""
    batch, rows, columns, channels = parts[0].shape
    even, odd = (jnp.stack(pair, axis=3).reshape(batch, rows, 2 * columns, channels) for pair in (parts[:2], parts[2:]))
    rows_in_turn = jnp.stack([even, odd], axis=2).reshape(batch, 2 * rows, 2 * columns, channels)
    return rows_in_turn[:, : shape[1], : shape[2]]


def _halving(inputs: Array, kernel: Array) -> Array:
    _, _, channels, features = kernel.shape
    if onednn.serves(inputs, kernel):
        return convolve(inputs, kernel, 2, ((1, 1), (1, 1)))
    if channels > 3 or features > 16:  # with more, XLA for CPUs is as fast without blocks, or faster
        return halving_convolution_plain(inputs, kernel)
    cuda = halving_convolution_plain
    if chosen("blocks_of_2"):
        cuda = _by_blocks
    elif chosen("blocks_of_4"):
        cuda = _by_larger_blocks
    return by_backend(inputs, kernel, cpu=_by_blocks, cuda=cuda, default=halving_convolution_plain)


def _by_blocks(inputs: Array, kernel: Array) -> Array:
    """The convolution with blocks of 2x2 pixels as one of four times the channels, of stride 1.

    The kernel gets a fourth row and column, of zeros, and is cut into 2x2 blocks, too.
    """
    batch, height, width, channels = inputs.shape
    rows, columns = height // 2 + height % 2 + 1, width // 2 + width % 2 + 1
    margins = ((0, 0), (1, 2 * rows - height - 1), (1, 2 * columns - width - 1), (0, 0))
    blocks = jnp.pad(inputs, margins).reshape(batch, rows, 2, columns, 2 * channels).transpose(0, 1, 3, 2, 4)
    kernel = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0))).reshape(2, 2, 2, 2 * channels, -1)
    kernel = kernel.transpose(0, 2, 1, 3, 4).reshape(2, 2, 4 * channels, -1)
    return convolve(blocks.reshape(batch, rows, columns, 4 * channels), kernel, 1, ((0, 0), (0, 0)))


def _by_larger_blocks(inputs: Array, kernel: Array) -> Array:
    """The convolution with blocks of 4x4 pixels as one of 16 times the channels, which gives 2x2 outputs at once.

    The block at (i, j) begins a row and a column before output row 2i and column 2j; the two outputs in a direction see
    its pixels 0 to 2 and 2 to 4, of which the last is the next block's first.
    """
    batch, height, width, channels = inputs.shape
    features = kernel.shape[-1]
    rows, columns = -(-height // 4) + 1, -(-width // 4) + 1
    margins = ((0, 0), (1, 4 * rows - height - 1), (1, 4 * columns - width - 1), (0, 0))
    blocks = jnp.pad(inputs, margins).reshape(batch, rows, 4, columns, 4 * channels).transpose(0, 1, 3, 2, 4)
    parts = [
        jnp.pad(kernel, ((2 * down, 5 - 2 * down), (2 * right, 5 - 2 * right), (0, 0), (0, 0)))
        for down in range(2)
        for right in range(2)
    ]  # each [8, 8, C, F]: two blocks in each direction
    large = jnp.stack(parts, axis=3).reshape(2, 4, 2, 4 * channels, 4 * features).transpose(0, 2, 1, 3, 4)
    large = large.reshape(2, 2, 16 * channels, 4 * features)
    outputs = convolve(blocks.reshape(batch, rows, columns, 16 * channels), large, 1, ((0, 0), (0, 0)))
    outputs = outputs.reshape(batch, rows - 1, columns - 1, 2, 2, features).transpose(0, 1, 3, 2, 4, 5)
    outputs = outputs.reshape(batch, 2 * (rows - 1), 2 * (columns - 1), features)
    return outputs[:, : -(-height // 2), : -(-width // 2)]


def halving_mean(inputs: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C"]:
    """Means of 3x3 places at every second row and column: H2 = H // 2 + 1, W2 = W // 2 + 1; keeps the dtype.

    PyTorch's average pooling with padding 1 and `ceil_mode`: zeros of the padding count as places, what the last window
    of an even side has beyond them does not.
    """
    _, height, width, _ = inputs.shape
    beyond = [2 - side % 2 for side in (height, width)]
    padding = ((0, 0), (1, beyond[0]), (1, beyond[1]), (0, 0))
    wide = widened(inputs)
    sums = jax.lax.reduce_window(wide, np.zeros((), wide.dtype), jax.lax.add, (1, 3, 3, 1), (1, 2, 2, 1), padding)
    rows, columns = (
        np.minimum(3, side + 2 - 2 * np.arange(side // 2 + 1)).astype(wide.dtype) for side in (height, width)
    )
    return (sums / (rows[None, :, None, None] * columns[None, None, :, None])).astype(inputs.dtype)
