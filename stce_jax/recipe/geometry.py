"""Geometric transforms of images on the device as Pillow has them: bicubic, `fill` where a pixel comes from outside.

Pure functions of one image, to be vmapped; options may be traced scalars. Pillow computes positions in doubles, so some
values may be one level off, and a pixel that comes from the very border may be filled.

Shape letters: H W image height and width.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from stce_jax.recipe.pixels import Scalar
from stce_jax.recipe.ranks import of_any_rank

Color = tuple[int, int, int]  # 0..255 for each channel
Matrix = tuple[Scalar, Scalar, Scalar, Scalar, Scalar, Scalar]  # a, b, c, d, e, f of `affine`
Pixels = Float[Array, "H W 3"]


def rotate(image: UInt8[Array, "H W 3"], *, degrees: Scalar, fill: Color) -> UInt8[Array, "H W 3"]:
    """Rotates about the centre by any number of `degrees`, counter-clockwise; `fill` 0..255 for each channel."""
    height, width, _ = image.shape
    return affine(image, matrix=rotation(height, width, degrees=degrees), fill=fill)


def shear_x(image: UInt8[Array, "H W 3"], *, factor: Scalar, fill: Color) -> UInt8[Array, "H W 3"]:
    """Moves each row to the left by `factor` times its height, any number; `fill` 0..255 for each channel."""
    return affine(image, matrix=(1, factor, 0, 0, 1, 0), fill=fill)


def shear_y(image: UInt8[Array, "H W 3"], *, factor: Scalar, fill: Color) -> UInt8[Array, "H W 3"]:
    """Moves each column up by `factor` times its distance from the left; `fill` 0..255 for each channel."""
    return affine(image, matrix=(1, 0, 0, factor, 1, 0), fill=fill)


def translate_x(image: UInt8[Array, "H W 3"], *, pixels: Scalar, fill: Color) -> UInt8[Array, "H W 3"]:
    """Moves the image to the left by `pixels`, any number, not only whole; `fill` 0..255 for each channel."""
    return affine(image, matrix=(1, 0, pixels, 0, 1, 0), fill=fill)


def translate_y(image: UInt8[Array, "H W 3"], *, pixels: Scalar, fill: Color) -> UInt8[Array, "H W 3"]:
    """Moves the image up by `pixels`, any number, not only whole; `fill` 0..255 for each channel."""
    return affine(image, matrix=(1, 0, 0, 0, 1, pixels), fill=fill)


def rotation(height: int, width: int, *, degrees: Scalar) -> Matrix:
    """The `matrix` for `affine` that rotates an image [height, width, 3] about its centre, by any number of degrees."""
    degrees = jnp.asarray(degrees, jnp.float32)
    quarters = jnp.round(degrees / 90.0)  # taken out, so that right angles are exact
    angle = jnp.deg2rad(degrees - 90.0 * quarters)
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    quarters = quarters.astype(jnp.int32)
    odd, sign = quarters & 1, 1.0 - (quarters & 2)
    sine, cosine = sign * jnp.where(odd, cosine, sine), sign * jnp.where(odd, -sine, cosine)
    middle_x, middle_y = width / 2, height / 2
    left = middle_x - _rounded(cosine * middle_x) + _rounded(sine * middle_y)
    top = middle_y - _rounded(sine * middle_x) - _rounded(cosine * middle_y)
    return cosine, -sine, left, sine, cosine, top


@of_any_rank
def affine(image: UInt8[Array, "H W 3"], *, matrix: Matrix, fill: Color) -> UInt8[Array, "H W 3"]:
    """Each pixel (x, y) becomes what the image has at (a x + b y + c, d x + e y + f), interpolated bicubically.

    Args:
      image: pixels are squares, the first one's centre is (0.5, 0.5).
      matrix: a, b, c, d, e, f; any numbers.
      fill: 0..255 for each channel; for pixels that come from outside the image.

    Returns:
      As Image.transform(size, AFFINE, matrix, BICUBIC, fillcolor=fill).
    """
    height, width, _ = image.shape
    a, b, c, d, e, f = matrix
    columns, rows = jnp.arange(width) + 0.5, jnp.arange(height)[:, None] + 0.5
    x = _rounded(a * columns) + _rounded(b * rows) + c  # [H, W]
    y = _rounded(d * columns) + _rounded(e * rows) + f
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    left, top = jnp.floor(x - 0.5), jnp.floor(y - 0.5)
    right_share, bottom_share = (x - 0.5 - left)[:, :, None], (y - 0.5 - top)[:, :, None]
    pixels = jnp.asarray(image).reshape(height * width, 3)  # a program may hold an array of NumPy

    def tap(row: int, column: int) -> Float[Array, "H W 3"]:
        rows = jnp.clip(top.astype(jnp.int32) + row, 0, height - 1)
        columns = jnp.clip(left.astype(jnp.int32) + column, 0, width - 1)
        return pixels.at[rows * width + columns].get(mode="promise_in_bounds").astype(jnp.float32)  # [H, W, 3]

    along_rows = [_cubic([tap(row, column) for column in range(-1, 3)], right_share) for row in range(-1, 3)]
    values = jnp.clip(_cubic(along_rows, bottom_share), 0.0, 255.0).astype(jnp.uint8)
    return jnp.where(inside[:, :, None], values, jnp.asarray(fill).astype(jnp.uint8))


def _cubic(taps: list[Pixels], share: Float[Array, "H W 1"]) -> Pixels:
    """Pillow's cubic (a = -1) between the second and third of four; in differences, so flat neighbours stay exact."""
    before, start, end, after = taps
    first, second = end - before, 2 * (before - start) + end - after
    third = _rounded(share * (start - before + after - end))
    return start + _rounded(share * (first + _rounded(share * (second + third))))


def _rounded(product: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """A product of -2^30 or more that is rounded before anything is added.

    Compilers would fuse the two into one rounding, in some programs or some uses of a position and not in others: then
    a pixel's place and its share disagree. They do not across a maximum.
    """
    return jnp.maximum(product, -(2.0**30))
