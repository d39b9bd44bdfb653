"""What the model is shown of an image: a random part of it, or the central square, as uint8 of the model's size.

Pixels leave the host as bytes.

Shape letters: H W image height and width.
"""

import numpy as np
from jaxtyping import UInt8

from stce_jax.data.decode import decode_image, pixels_of
from stce_jax.data.forms import ImageLike
from stce_jax.data.large_jpegs import LargeJpeg, large_jpeg
from stce_jax.data.resizing import INTERPOLATIONS, Pixels, resized

LONGEST = 16  # short sides; only this much of a long side is resized for the central square
Square = UInt8[np.ndarray, "size size 3"]


def open_for_crops(encoded: bytes, name: str, resize: str) -> Pixels | LargeJpeg:
    """An image file decoded, or to be decoded for each crop where "fast" does so at a fraction of its size.

    Raises:
      DataError: see `decode_image`.
    """
    lazy = large_jpeg(encoded, name) if resize == "fast" else None
    return lazy or decode_image(encoded, name)


def raw_file(image: UInt8[np.ndarray, "H W 3"], short_side: int) -> bytes:
    """Pixels as a file that `decode_image` need not decode: binary PPM, a header and the pixels.

    Images with a longer short side are first resized to `short_side` pixels, as `center_crop` does: so the evaluation's
    view of size 224 and fraction 0.875 is the same to the bit at a short side of 256, unless the image is more than
    LONGEST times as long as wide.
    """
    if min(image.shape[:2]) > short_side:
        image = resized(image, _short_side_of(short_side, *image.shape[:2]))
    height, width, _ = image.shape
    return b"P6\n%d %d\n255\n" % (width, height) + image.tobytes()


def _short_side_of(length: int, height: int, width: int) -> tuple[int, int]:
    """(rows, columns) of an image whose short side gets `length` pixels; rounds as torchvision."""
    short = min(height, width)
    return length * height // short, length * width // short


def center_crop(image: Pixels, size: int, fraction: float, interpolation: str = INTERPOLATIONS[0]) -> Square:
    """DeiT's evaluation view: short side to size / fraction, then the central square; rounds as torchvision.

    By Pillow, to the bit: published accuracies are of such pixels.

    Args:
      image: of any size.
      size: side of the result in pixels.
      fraction: share of the short side that the square covers, 0 < fraction <= 1; DeiT's is 0.875.
      interpolation: one of `INTERPOLATIONS`.
    """
    # Of a 1 x 10,000 image's 256 x 2,560,000 pixels only the middle is seen.
    longest = LONGEST * min(image.shape[:2])
    rows, columns = (min(length, longest) for length in image.shape[:2])
    top, left = (image.shape[0] - rows) // 2, (image.shape[1] - columns) // 2
    whole = _short_side_of(int(size / fraction), rows, columns)
    seen = resized(image[top : top + rows, left : left + columns], whole, interpolation=interpolation)
    top, left = (round((length - size) / 2) for length in whole)
    return seen[top : top + size, left : left + size]


def read_view(image: ImageLike, *, size: int, fraction: float, interpolation: str = INTERPOLATIONS[0]) -> Square:
    """DeiT's evaluation view of an image in any form that `pixels_of` takes, see `center_crop`; raises as that does."""
    return center_crop(pixels_of(image), size, fraction, interpolation)


def random_resized_crop(
    rng: np.random.Generator,
    image: Pixels | LargeJpeg,
    size: int,
    *,
    area: tuple[float, float],
    ratio: tuple[float, float],
    resize: str = "pillow",
) -> Square:
    """A random part of the image, resized to a square (bicubic): Inception's augmentation, as torchvision draws it.

    Args:
      rng: source of the draws.
      image: of any size.
      size: side of the result in pixels.
      area: minimum and maximum of the part's share of the image's area, 0..1.
      ratio: minimum and maximum of its width over its height, drawn log-uniformly.
      resize: one of `RESIZES`.

    Raises:
      ConfigError: "simd" is not installed.
    """
    height, width = (image.height, image.width) if isinstance(image, LargeJpeg) else image.shape[:2]
    top, left, rows, columns = _draw_box(rng, height, width, area, ratio)
    if not isinstance(image, LargeJpeg):
        return resized(image[top : top + rows, left : left + columns], (size, size), resize=resize)
    pixels, box = image.decoded((left, top, left + columns, top + rows), (size, size))
    return resized(pixels, (size, size), resize=resize, box=box)


def _draw_box(
    rng: np.random.Generator, height: int, width: int, area: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """(top, left, height, width): ten tries, then the largest central box whose ratio is in range."""
    for _ in range(10):
        target = height * width * rng.uniform(*area)
        aspect = np.exp(rng.uniform(*np.log(ratio)))
        box_width, box_height = round(np.sqrt(target * aspect)), round(np.sqrt(target / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            return (
                int(rng.integers(height - box_height + 1)),
                int(rng.integers(width - box_width + 1)),
                box_height,
                box_width,
            )
    aspect = np.clip(width / height, *ratio)
    box_width, box_height = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width
