"""Image operations on the device that equal Pillow's, pixel by pixel: pure functions of one image, to be vmapped.

Every function takes one image uint8 [H, W, 3], values 0..255, of any size, and returns one like it. Options go by
keyword and may be traced scalars, so one compiled program serves all magnitudes, image by image. Results are Pillow's
to the last bit, but for blurring and the geometric ones: Pillow computes their weights or positions in doubles, so some
values may be one level off, and a pixel that comes from the very border may be filled. Pillow cuts values off rather
than round them; to agree, the roundings before that are made as in its code.

Shape letters: H W image height and width.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

# --- one pixel at a time


def invert(image):
    """255 minus each value (ImageOps.invert)."""
    return 255 - image


def posterize(image, *, bits):
    """Keeps the `bits` highest bits of each value, a whole number 0..8 (ImageOps.posterize)."""
    dropped = 8 - jnp.asarray(bits).astype(jnp.int32)
    return ((image.astype(jnp.int32) >> dropped) << dropped).astype(jnp.uint8)


def solarize(image, *, threshold):
    """Inverts the values that are not below `threshold`, 0..256 (ImageOps.solarize)."""
    return jnp.where(image.astype(jnp.int32) < threshold, image, 255 - image)


def solarize_add(image, *, amount, threshold=128):
    """Adds `amount`, a whole number 0..255, to the values below `threshold`, 0..256, up to 255 (timm's SolarizeAdd)."""
    values = image.astype(jnp.int32)
    brighter = jnp.minimum(values + jnp.asarray(amount).astype(jnp.int32), 255)
    return jnp.where(values < threshold, brighter, values).astype(jnp.uint8)


def luma(image):
    """The image as int32 [H, W], 0..255: what Pillow's convert("L") gives, ITU-R 601 in 16-bit fixed point."""
    red, green, blue = (image[..., channel].astype(jnp.int32) for channel in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def grayscale(image):
    """The image without colour, its three channels alike (convert("L") and back)."""
    return jnp.broadcast_to(luma(image)[:, :, None], image.shape).astype(jnp.uint8)


# --- lookup tables


def look_up(image, table):
    """Replaces each value by its entry in `table`, uint8 [3, 256]: one table a channel (Image.point)."""
    entries = image.astype(jnp.int32) + 256 * jnp.arange(3)  # [H, W, 3]
    return table.reshape(-1).at[entries].get(mode="promise_in_bounds")


def autocontrast(image):
    """Stretches each channel to 0..255; a flat channel stays as it is (ImageOps.autocontrast without cutoff)."""
    return look_up(image, by_channel(autocontrast_table, histogram(image)))


def equalize(image):
    """Makes each channel's values equally frequent, as far as they go (ImageOps.equalize)."""
    return look_up(image, by_channel(equalize_table, histogram(image)))


def histogram(image):
    """How many pixels have each value, channel by channel: int32 [3, 256]."""
    # Neighbours, often of one value, count in tables of their own: GPUs add them at once, but for those to one place.
    tables = 8
    own = jnp.arange(image.shape[1]) % tables  # [W]
    entries = image.astype(jnp.int32) + 256 * (jnp.arange(3) + 3 * own[:, None])  # [H, W, 3]
    counts = jnp.zeros(tables * 3 * 256, jnp.int32).at[entries.reshape(-1)].add(1, mode="promise_in_bounds")
    return counts.reshape(tables, 3, 256).sum(axis=0)


def by_channel(table, counts):
    """The table uint8 [3, 256] that the function `table` makes of each channel's counts, int32 [3, 256].

    In a loop, for compilers fuse what is not, and compute the table's entry anew for every pixel.
    """
    return jax.lax.map(table, counts)


def autocontrast_table(counts):
    """What `autocontrast` does to a channel whose values occur `counts` times, int32 [256]: uint8 [256]."""
    values, least, most = jnp.arange(256), *_range(counts)
    width, above = most - least, values - least
    stretched = above * 255 // jnp.maximum(width, 1)
    # Where the quotient is whole, Pillow's doubles may fall short of it, and then it is cut off to one less.
    bits, starts, divisors = _falls_short()
    start, divisor = jnp.asarray(starts)[width], jnp.asarray(divisors)[width]
    entry = start + least * divisor + above * divisor // jnp.maximum(width, 1) - 1
    short = (jnp.asarray(bits)[entry >> 3] >> (entry & 7)) & 1
    whole = (above > 0) & (above <= width) & (above * 255 % jnp.maximum(width, 1) == 0)
    stretched -= jnp.where(whole, short.astype(jnp.int32), 0)
    return jnp.where(width > 0, jnp.clip(stretched, 0, 255), values).astype(jnp.uint8)


@functools.cache
def _falls_short():
    """Where Pillow's autocontrast, in doubles, gives one less than the exact quotient 255 (value - least) / width.

    That can happen only where the quotient is whole: at the multiples of width / gcd(width, 255). The result is one bit
    for each width 1..255, each least 0..255 - width and each of the gcd multiples above 0, in this order and packed
    into bytes; each width's first bit, int32 [256]; and each width's gcd, int32 [256].
    """
    bits, starts, divisors = [], [0], [1]
    for width in range(1, 256):
        divisor = math.gcd(width, 255)
        least, above = np.arange(256 - width)[:, None], np.arange(1, divisor + 1) * (width // divisor)
        scale = 255.0 / width
        bits.append(((least + above) * scale + -least * scale).astype(int) < above * 255 // width)
        divisors.append(divisor)
        starts.append(starts[-1] + (bits[-2].size if width > 1 else 0))
    packed = np.packbits(np.concatenate([each.ravel() for each in bits]), bitorder="little")
    return packed, np.array(starts, np.int32), np.array(divisors, np.int32)


def equalize_table(counts):
    """What `equalize` does to a channel whose values occur `counts` times, int32 [256]: uint8 [256]."""
    _, most = _range(counts)
    step = (counts.sum() - counts[most]) // 255
    below = jnp.cumsum(counts) - counts
    spread = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, spread, jnp.arange(256)).astype(jnp.uint8)


def _range(counts):
    """The least and the greatest value that occurs."""
    return jnp.argmax(counts > 0).astype(jnp.int32), 255 - jnp.argmax(counts[::-1] > 0).astype(jnp.int32)


# --- blends with a degenerate image


def blend(degenerate, image, *, factor):
    """From `degenerate`, 0..255 and broadcast, at `factor` 0 to the image at 1 and beyond; any number (Image.blend)."""
    start = jnp.asarray(degenerate).astype(jnp.float32)
    # Pillow rounds the product before it adds. Compilers would fuse the two into one rounding; not across a clip.
    change = jnp.clip(factor * (image.astype(jnp.float32) - start), -1024.0, 1024.0)
    return jnp.clip(start + change, 0.0, 255.0).astype(jnp.uint8)


def brightness(image, *, factor):
    """Black at `factor` 0, the image at 1, brighter above; any factor >= 0 (ImageEnhance.Brightness)."""
    return blend(0, image, factor=factor)


def contrast(image, *, factor):
    """Flat grey at `factor` 0, the image at 1, more contrast above; any factor >= 0 (ImageEnhance.Contrast)."""
    return blend(mean_luma(image), image, factor=factor)


def color(image, *, factor):
    """Without colour at `factor` 0, the image at 1, more colourful above; any factor >= 0 (ImageEnhance.Color)."""
    return blend(luma(image)[:, :, None], image, factor=factor)


def sharpness(image, *, factor):
    """Smoothed at `factor` 0, the image at 1, sharper above; any factor >= 0 (ImageEnhance.Sharpness)."""
    return blend(smooth(image), image, factor=factor)


def mean_luma(image):
    """The mean of `luma`, int32, rounded; halves go up."""
    count = image.shape[0] * image.shape[1]
    return (2 * jnp.sum(luma(image), dtype=jnp.uint32) + count).astype(jnp.uint32) // (2 * count)


def smooth(image):
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


def gaussian_blur(image, *, radius):
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

    def running_mean(_, image, axis):
        padding = [(2, 2) if each == axis else (0, 0) for each in range(3)]
        padded = jnp.pad(image, padding, mode="edge")

        def moved(offset):
            start = 2 + offset
            return jax.lax.slice_in_dim(padded, start, start + image.shape[axis], axis=axis).astype(jnp.uint32)

        near, far = moved(-1) + moved(1), moved(-2) + moved(2)
        return ((weights[0] * moved(0) + weights[1] * near + weights[2] * far + 2**23) >> 24).astype(jnp.uint8)

    for axis in (1, 0):  # a loop, lest the passes are fused into one that repeats the first ones for each pixel
        image = jax.lax.fori_loop(0, 3, functools.partial(running_mean, axis=axis), image)
    return image


# --- geometry: bicubic, `fill` where a pixel comes from outside


def rotate(image, *, degrees, fill):
    """Rotates about the centre by any number of `degrees`, counter-clockwise; `fill` 0..255 for each channel."""
    height, width, _ = image.shape
    return affine(image, matrix=rotation(height, width, degrees=degrees), fill=fill)


def shear_x(image, *, factor, fill):
    """Moves each row to the left by `factor` times its height, any number; `fill` 0..255 for each channel."""
    return affine(image, matrix=(1, factor, 0, 0, 1, 0), fill=fill)


def shear_y(image, *, factor, fill):
    """Moves each column up by `factor` times its distance from the left; `fill` 0..255 for each channel."""
    return affine(image, matrix=(1, 0, 0, factor, 1, 0), fill=fill)


def translate_x(image, *, pixels, fill):
    """Moves the image to the left by `pixels`, any number, not only whole; `fill` 0..255 for each channel."""
    return affine(image, matrix=(1, 0, pixels, 0, 1, 0), fill=fill)


def translate_y(image, *, pixels, fill):
    """Moves the image up by `pixels`, any number, not only whole; `fill` 0..255 for each channel."""
    return affine(image, matrix=(1, 0, 0, 0, 1, pixels), fill=fill)


def rotation(height, width, *, degrees):
    """The `matrix` for `affine` that rotates an image [height, width, 3] about its centre, by any number of degrees."""
    degrees = jnp.asarray(degrees, jnp.float32)
    quarters = jnp.round(degrees / 90.0)  # taken out, so that right angles are exact
    angle = jnp.deg2rad(degrees - 90.0 * quarters)
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    quarters = quarters.astype(jnp.int32)
    odd, sign = quarters & 1, 1.0 - (quarters & 2)
    sine, cosine = sign * jnp.where(odd, cosine, sine), sign * jnp.where(odd, -sine, cosine)
    middle_x, middle_y = width / 2, height / 2
    left = middle_x - cosine * middle_x + sine * middle_y
    top = middle_y - sine * middle_x - cosine * middle_y
    return cosine, -sine, left, sine, cosine, top


def affine(image, *, matrix, fill):
    """Each pixel (x, y) becomes what the image has at (a x + b y + c, d x + e y + f), interpolated bicubically.

    Args:
      image: uint8 [H, W, 3]; pixels are squares, the first one's centre is (0.5, 0.5).
      matrix: a, b, c, d, e, f; any numbers.
      fill: 0..255 for each of the three channels; for pixels that come from outside the image.

    Returns:
      uint8 [H, W, 3], as Image.transform(size, AFFINE, matrix, BICUBIC, fillcolor=fill).
    """
    height, width, _ = image.shape
    a, b, c, d, e, f = matrix
    columns, rows = jnp.arange(width) + 0.5, jnp.arange(height)[:, None] + 0.5
    x, y = a * columns + b * rows + c, d * columns + e * rows + f  # [H, W]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    left, top = jnp.floor(x - 0.5), jnp.floor(y - 0.5)
    right_share, bottom_share = (x - 0.5 - left)[:, :, None], (y - 0.5 - top)[:, :, None]
    pixels = image.reshape(height * width, 3)

    def tap(row, column):
        row = jnp.clip(top.astype(jnp.int32) + row, 0, height - 1)
        column = jnp.clip(left.astype(jnp.int32) + column, 0, width - 1)
        return pixels.at[row * width + column].get(mode="promise_in_bounds").astype(jnp.float32)  # [H, W, 3]

    along_rows = [_cubic(*(tap(row, column) for column in range(-1, 3)), right_share) for row in range(-1, 3)]
    values = jnp.clip(_cubic(*along_rows, bottom_share), 0.0, 255.0).astype(jnp.uint8)
    return jnp.where(inside[:, :, None], values, jnp.asarray(fill).astype(jnp.uint8))


def _cubic(before, start, end, after, share):
    """Pillow's cubic (a = -1) between `start` and `end`; written with differences, flat neighbours stay exact."""
    first, second = end - before, 2 * (before - start) + end - after
    return start + share * (first + share * (second + share * (start - before + after - end)))
