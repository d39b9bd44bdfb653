"""JPEG files of large photos, decoded at a fraction of their size where what is shown of them is much smaller.

libjpeg-turbo reconstructs blocks of 8x8 pixels as 4x4, 2x2 or 1x1, which leaves out most of the work behind the
Huffman codes, and what is resized then is small. Measured in `benchmarks/input_pipeline.py`.

Shape letters: H W image height and width.
"""

import math
from typing import NamedTuple

import simplejpeg

from stce_jax.data.decode import MAX_PIXELS, decode_image
from stce_jax.data.resizing import Box, Pixels

LARGE = 2_000_000  # pixels of an image from which on it may be decoded at a fraction; the same for every view of it
FACTORS = (8, 4, 2)
KEPT = 2.0  # pixels that are decoded for a pixel that is shown, on each side, at least; with 1.5 edges soften visibly


class LargeJpeg(NamedTuple):
    """A file that is not decoded yet.

    Attributes:
      encoded: its bytes.
      name: for error messages.
      height, width: in pixels.
    """

    encoded: bytes
    name: str
    height: int
    width: int

    def decoded(self, box: Box, size: tuple[int, int]) -> tuple[Pixels, Box]:
        """(pixels that hold a box, perhaps at a fraction of their size; the box in them).

        Args:
          box: that is shown, in pixels of the file.
          size: (rows, columns) that it is resized to.

        Raises:
          DataError: see `decode_image`.
        """
        left, top, right, bottom = box
        room = min((bottom - top) / size[0], (right - left) / size[1]) / KEPT
        factor = next((factor for factor in FACTORS if factor <= room), 1)
        smallest = {"min_height": math.ceil(self.height / factor), "min_width": math.ceil(self.width / factor)}
        try:
            pixels = simplejpeg.decode_jpeg(self.encoded, colorspace="RGB", min_factor=factor, **smallest)
        except ValueError:  # a colour space that it does not know, or damage that Pillow may forgive
            pixels, factor = decode_image(self.encoded, self.name), 1
        left, top, right, bottom = (edge / factor for edge in box)
        row, column = math.floor(top), math.floor(left)
        part = pixels[row : math.ceil(bottom), column : math.ceil(right)]
        return part, (left - column, top - row, right - column, bottom - row)


def large_jpeg(encoded: bytes, name: str) -> LargeJpeg | None:
    """The file, if it is a JPEG of more than LARGE pixels, and not of more than is read at all; else None."""
    if encoded[:3] != b"\xff\xd8\xff":
        return None
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        return None
    return LargeJpeg(encoded, name, height, width) if LARGE < height * width <= MAX_PIXELS else None
