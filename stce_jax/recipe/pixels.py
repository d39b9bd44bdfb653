"""Image operations on the device that equal Pillow's, pixel by pixel: pure functions of one image, to be vmapped.

Values are 0..255; images may have any size. Options are keywords and may be traced scalars, so that one compiled
program serves all magnitudes, image by image. Results equal Pillow's to the last bit, except for blurring: Pillow
computes its weights in doubles, so some values may be one level off. Pillow truncates values where others round; to
agree, the roundings before that follow its code. Transforms that move pixels are in `geometry`.

Shape letters: H W image height and width.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, Num, UInt8, UInt32

from stce_jax.recipe.ranks import of_any_rank

Counts = Int32[Array, "256"]  # how often each value occurs in a channel
Table = UInt8[Array, "256"]  # value -> value
Scalar = float | Num[Array, ""]

# --- one pixel at a time


def invert(image: UInt8[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """255 minus each value (ImageOps.invert)."""
    return 255 - image


def posterize(image: UInt8[Array, "*shape"], *, bits: Scalar) -> UInt8[Array, "*shape"]:
    """Keeps the `bits` highest bits of each value, a whole number 0..8 (ImageOps.posterize)."""
    dropped = 8 - jnp.asarray(bits).astype(jnp.int32)
    return ((image.astype(jnp.int32) >> dropped) << dropped).astype(jnp.uint8)


def solarize(image: UInt8[Array, "*shape"], *, threshold: Scalar) -> UInt8[Array, "*shape"]:
    """Inverts the values from `threshold` up, 0..256 (ImageOps.solarize)."""
    return jnp.where(image.astype(jnp.int32) < threshold, image, 255 - image)


def solarize_add(image: UInt8[Array, "*shape"], *, amount: Scalar, threshold: int = 128) -> UInt8[Array, "*shape"]:
    """Adds `amount`, a whole number 0..255, to the values below `threshold`, 0..256, up to 255 (timm's SolarizeAdd)."""
    values = image.astype(jnp.int32)
    brighter = jnp.minimum(values + jnp.asarray(amount).astype(jnp.int32), 255)
    return jnp.where(values < threshold, brighter, values).astype(jnp.uint8)


def luma(image: UInt8[Array, "H W 3"]) -> Int32[Array, "H W"]:
    """The brightness, 0..255: what Pillow's convert("L") gives, ITU-R 601 in 16-bit fixed point."""
    red, green, blue = (image[..., channel].astype(jnp.int32) for channel in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def grayscale(image: UInt8[Array, "H W 3"]) -> UInt8[Array, "H W 3"]:
    """The image without colour, its three channels equal (convert("L") and back)."""
    return jnp.broadcast_to(luma(image)[:, :, None], image.shape).astype(jnp.uint8)


# --- lookup tables


@of_any_rank
def look_up(image: UInt8[Array, "H W 3"], table: UInt8[Array, "3 256"]) -> UInt8[Array, "H W 3"]:
    """Replaces each value by its entry in the table of its channel (Image.point)."""
    entries = image.astype(jnp.int32) + 256 * jnp.arange(3)  # [H, W, 3]
    return table.reshape(-1).at[entries].get(mode="promise_in_bounds")


def autocontrast(image: UInt8[Array, "H W 3"]) -> UInt8[Array, "H W 3"]:
    """Stretches each channel to 0..255; a flat channel stays as it is (ImageOps.autocontrast without cutoff)."""
    return look_up(image, by_channel(autocontrast_table, histogram(image)))


def equalize(image: UInt8[Array, "H W 3"]) -> UInt8[Array, "H W 3"]:
    """Makes each channel's values as equally frequent as possible (ImageOps.equalize)."""
    return look_up(image, by_channel(equalize_table, histogram(image)))


@of_any_rank
def histogram(image: UInt8[Array, "H W 3"]) -> Int32[Array, "3 256"]:
    """How many pixels have each value, channel by channel."""
    # Neighbours often have one value, so they count in separate tables: GPUs serialise additions to one address.
    tables = 8
    own = jnp.arange(image.shape[1]) % tables  # [W]
    entries = image.astype(jnp.int32) + 256 * (jnp.arange(3) + 3 * own[:, None])  # [H, W, 3]
    counts = jnp.zeros(tables * 3 * 256, jnp.int32).at[entries.reshape(-1)].add(1, mode="promise_in_bounds")
    return counts.reshape(tables, 3, 256).sum(axis=0)


def by_channel(table: Callable[[Counts], Table], counts: Int32[Array, "3 256"]) -> UInt8[Array, "3 256"]:
    """The table that `table` makes of each channel's counts.

    In a loop: outside of loops, compilers fuse and compute the table's entry again for every pixel.
    """
    return jax.lax.map(table, counts)


def autocontrast_table(counts: Counts) -> Table:
    """What `autocontrast` does to a channel whose values occur `counts` times."""
    values, (low, high) = jnp.arange(256), _range(counts)
    width, above = high - low, values - low
    stretched = above * 255 // jnp.maximum(width, 1)
    # Where the quotient is whole, Pillow's doubles may fall short of it; then it is truncated to one less.
    bits, starts, divisors = _falls_short()
    start, divisor = jnp.asarray(starts)[width], jnp.asarray(divisors)[width]
    entry = start + low * divisor + above * divisor // jnp.maximum(width, 1) - 1
    short = (jnp.asarray(bits)[entry >> 3] >> (entry & 7)) & 1
    whole = (above > 0) & (above <= width) & (above * 255 % jnp.maximum(width, 1) == 0)
    stretched -= jnp.where(whole, short.astype(jnp.int32), 0)
    return jnp.where(width > 0, jnp.clip(stretched, 0, 255), values).astype(jnp.uint8)


@functools.cache
def _falls_short() -> tuple[UInt8[np.ndarray, "bytes"], Int32[np.ndarray, "256"], Int32[np.ndarray, "256"]]:
    """Where Pillow's autocontrast, in doubles, gives one less than the exact quotient 255 (value - low) / width.

    That can happen only where the quotient is whole: at the multiples of width / gcd(width, 255). The result is one bit
    for each width 1..255, each low 0..255 - width and each of the gcd multiples above 0, in this order and packed
    into bytes; each width's first bit, int32 [256]; and each width's gcd, int32 [256].
    """
    bits, starts, divisors = [], [0], [1]
    for width in range(1, 256):
        divisor = math.gcd(width, 255)
        low, above = np.arange(256 - width)[:, None], np.arange(1, divisor + 1) * (width // divisor)
        scale = 255.0 / width
        bits.append(((low + above) * scale + -low * scale).astype(int) < above * 255 // width)
        divisors.append(divisor)
        starts.append(starts[-1] + (bits[-2].size if width > 1 else 0))
    packed = np.packbits(np.concatenate([each.ravel() for each in bits]), bitorder="little")
    return packed, np.array(starts, np.int32), np.array(divisors, np.int32)


def equalize_table(counts: Counts) -> Table:
    """What `equalize` does to a channel whose values occur `counts` times."""
    _, high = _range(counts)
    step = (counts.sum() - counts[high]) // 255
    below = jnp.cumsum(counts) - counts
    spread = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, spread, jnp.arange(256)).astype(jnp.uint8)


def _range(counts: Counts) -> tuple[Int32[Array, ""], Int32[Array, ""]]:
    """The smallest and the largest value that occurs."""
    return jnp.argmax(counts > 0).astype(jnp.int32), 255 - jnp.argmax(counts[::-1] > 0).astype(jnp.int32)


# --- blends with a degenerate image


def blend(
    degenerate: int | Num[Array, "*#shape"], image: UInt8[Array, "H W 3"], *, factor: Scalar
) -> UInt8[Array, "H W 3"]:
    """From `degenerate`, 0..255 and broadcast, at `factor` 0 to the image at 1 and beyond; any number (Image.blend)."""
    start = jnp.asarray(degenerate).astype(jnp.float32)
    # Pillow rounds the product before it adds. Compilers would fuse the two into one rounding; not across a clip.
    change = jnp.clip(factor * (image.astype(jnp.float32) - start), -1024.0, 1024.0)
    return jnp.clip(start + change, 0.0, 255.0).astype(jnp.uint8)


def brightness(image: UInt8[Array, "H W 3"], *, factor: Scalar) -> UInt8[Array, "H W 3"]:
    """Black at `factor` 0, the image at 1, brighter above; any factor >= 0 (ImageEnhance.Brightness)."""
    return blend(0, image, factor=factor)


def contrast(image: UInt8[Array, "H W 3"], *, factor: Scalar) -> UInt8[Array, "H W 3"]:
    """Flat grey at `factor` 0, the image at 1, more contrast above; any factor >= 0 (ImageEnhance.Contrast)."""
    return blend(mean_luma(image), image, factor=factor)


def color(image: UInt8[Array, "H W 3"], *, factor: Scalar) -> UInt8[Array, "H W 3"]:
    """Without colour at `factor` 0, the image at 1, more colourful above; any factor >= 0 (ImageEnhance.Color)."""
    return blend(luma(image)[:, :, None], image, factor=factor)


def sharpness(image: UInt8[Array, "H W 3"], *, factor: Scalar) -> UInt8[Array, "H W 3"]:
    """Smoothed at `factor` 0, the image at 1, sharper above; any factor >= 0 (ImageEnhance.Sharpness)."""
    return blend(smooth(image), image, factor=factor)


def mean_luma(image: UInt8[Array, "H W 3"]) -> UInt32[Array, ""]:
    """The mean of `luma`, rounded; halves go up."""
    count = image.shape[0] * image.shape[1]
    return (2 * jnp.sum(luma(image), dtype=jnp.uint32) + count).astype(jnp.uint32) // (2 * count)


def smooth(image: UInt8[Array, "H W 3"]) -> UInt8[Array, "H W 3"]:
    """The mean of 3 x 3 pixels, the middle one counted five times; those on the border stay (ImageFilter.SMOOTH)."""
    height, width, _ = image.shape
    if height < 3 or width < 3:
        return image
    values = image.astype(jnp.int32)
    rows = values[:-2] + values[1:-1] + values[2:]  # [H - 2, W, 3]
    sums = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * values[1:-1, 1:-1]  # [H - 2, W - 2, 3]
    # No sum / 13 comes close enough to a half for float32 to round it otherwise.
    inner = (sums.astype(jnp.float32) / 13.0 + 0.5).astype(jnp.uint8)
    return jax.lax.dynamic_update_slice(image, inner, (1, 1, 0))


def gaussian_blur(image: UInt8[Array, "H W 3"], *, radius: Scalar) -> UInt8[Array, "H W 3"]:
    """Blurs with a standard deviation of `radius` pixels, 0..2.4 (ImageFilter.GaussianBlur).

    Pillow's approximation: three running means along rows, then three along columns, each rounded. Their length,
    2 reach + 1, need not be whole: the pixels at its ends count in part.
    """
    variance = jnp.asarray(radius, jnp.float32) ** 2 / 3.0
    whole = jnp.floor((jnp.sqrt(12.0 * variance + 1.0) - 1.0) / 2.0)  # 0 or 1
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    weight = (2.0**24 / (2 * (whole + part) + 1)).astype(jnp.uint32)
    rest = (2**24 - (2 * whole.astype(jnp.uint32) + 1) * weight) // 2
    weights = weight, jnp.where(whole > 0, weight, rest), jnp.where(whole > 0, rest, 0)

    def running_mean(_: int, image: UInt8[Array, "H W 3"], axis: int) -> UInt8[Array, "H W 3"]:
        padding = [(2, 2) if each == axis else (0, 0) for each in range(3)]
        padded = jnp.pad(image, padding, mode="edge")

        def moved(offset: int) -> UInt32[Array, "H W 3"]:
            start = 2 + offset
            return jax.lax.slice_in_dim(padded, start, start + image.shape[axis], axis=axis).astype(jnp.uint32)

        near, far = moved(-1) + moved(1), moved(-2) + moved(2)
        return ((weights[0] * moved(0) + weights[1] * near + weights[2] * far + 2**23) >> 24).astype(jnp.uint8)

    for axis in (1, 0):  # in a loop: fused, the last pass would repeat the first ones for each pixel
        image = jax.lax.fori_loop(0, 3, functools.partial(running_mean, axis=axis), image)
    return image
