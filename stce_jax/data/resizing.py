"""Images made smaller or larger: antialiased bicubic by Pillow, or the same by vector instructions.

Shape letters: H W image height and width.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from stce_jax.errors import ConfigError

Pixels = UInt8[np.ndarray, "H W 3"]
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels, which may be fractions

# "pillow": to the bit what Pillow computes; "simd": vector instructions, or an error where their package is missing;
# "fast": these where they are installed, and large JPEG files decoded at a fraction of their size, see `large_jpegs`.
RESIZES = ("fast", "pillow", "simd")
INTERPOLATIONS = ("bicubic", "bilinear", "lanczos", "box", "hamming", "nearest")  # Pillow's, of the evaluation's view


def resized(
    image: Pixels,
    size: tuple[int, int],
    *,
    resize: str = "pillow",
    interpolation: str = INTERPOLATIONS[0],
    box: Box | None = None,
) -> Pixels:
    """An image, or a box of it, in another size.

    Pillow and vector instructions differ by at most 2 of 255 levels in the same order of passes. Vector instructions
    first shorten the rows, as Pillow up to 12.3 does; Pillow 13 takes tall images the other way round.

    Args:
      image: of any size.
      size: (rows, columns) of the result.
      resize: one of RESIZES. Other interpolations than bicubic are always Pillow's.
      interpolation: one of INTERPOLATIONS.
      box: within the image; None for all of it.

    Raises:
      ConfigError: "simd" is not installed.
    """
    if resize != "pillow" and interpolation == INTERPOLATIONS[0] and (by_vectors := vector_resize(resize == "simd")):
        return by_vectors(image, size, box)
    rows, columns = size
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((columns, rows), Image.Resampling[interpolation.upper()], box))


@functools.cache
def vector_resize(needed: bool) -> Callable[[Pixels, tuple[int, int], Box | None], Pixels] | None:
    """The function (image, size, box) -> resized image; None where its package is not installed and not `needed`.

    Raises:
      ConfigError: it is `needed` and not installed.
    """
    try:
        import cykooz_resizer as simd
    except ImportError as error:
        if not needed:
            return None
        raise ConfigError(
            'config.augment.resize="simd" needs the package cykooz-resizer; install it, or use "fast" or "pillow"'
        ) from error
    pixels, bicubic = simd.PixelType.U8x3, simd.ResizeAlg.convolution(simd.FilterType.catmull_rom)

    def options(*box: float) -> Any:
        return simd.ResizeOptions(resize_alg=bicubic, use_alpha=False, crop_box=simd.CropBox(*box))

    def resize(image: Pixels, size: tuple[int, int], box: Box | None) -> Pixels:
        (height, width), (rows, columns) = image.shape[:2], size
        left, top, right, bottom = box or (0, 0, width, height)
        whole = simd.ImageData(width, height, pixels, image.tobytes())
        short, result = simd.ImageData(columns, height, pixels), simd.ImageData(columns, rows, pixels)
        resizer = simd.Resizer()  # not thread-safe
        resizer.resize(whole, short, options(left, 0, right - left, height))
        resizer.resize(short, result, options(0, top, columns, bottom - top))
        return np.frombuffer(result.get_buffer(), np.uint8).reshape(rows, columns, 3)

    return resize
