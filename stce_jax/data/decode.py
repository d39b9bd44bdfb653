"""On the host: from encoded bytes, or whatever else is an image, to uint8 pixels.

Shape letters: H W image height and width.
"""

import io
import os
import re
import warnings

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from stce_jax.data import deep_pixels, formats
from stce_jax.data.forms import ImageLike, pixels_of_array
from stce_jax.errors import DataError
from stce_jax.paths import first_line, read_regular

MAX_PIXELS = 89_478_485  # of an image; a quarter of a GiB as RGB, where Pillow begins to warn
MAX_BYTES = 256 * 2**20  # of an image file; what claims or turns out to be larger is refused
# Such images are refused; Pillow's warning would only repeat that.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Damaged EXIF data; their orientation is not applied anyway.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")

# What `raw_file` writes. Pillow reads any other kind of PPM.
_RAW_HEADER = re.compile(rb"P6\n([1-9][0-9]{0,8}) ([1-9][0-9]{0,8})\n255\n")


def decode_image(encoded: bytes, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes an image file by its content, whatever it is called; JPEGs by the faster simplejpeg, raw pixels at once.

    The same in training, evaluation, prediction and preparing: the first frame of an animation; alpha is dropped;
    palettes are looked up; of 16 bits the high byte counts, see `deep_pixels`; CMYK as Pillow converts it; grey in
    three equal channels. The EXIF orientation is not applied, as in ImageNet's usual pipelines. Images above MAX_PIXELS
    are refused by their header, so that a small file cannot claim all memory.

    Args:
      encoded: the file's bytes.
      name: what to call the image in an error message.

    Returns:
      Red, green, blue; maybe read-only.

    Raises:
      DataError: the bytes are not an image of a format that is read, see `formats`, or it is too large.
    """
    try:
        if encoded[:3] == b"\xff\xd8\xff":
            try:
                height, width, _, _ = simplejpeg.decode_jpeg_header(encoded)
                check_pixels(width, height)
                return simplejpeg.decode_jpeg(encoded, colorspace="RGB")
            except ValueError:
                pass  # a colour space that it does not know, or damage that Pillow may forgive
        if header := _RAW_HEADER.match(encoded):
            width, height = map(int, header.groups())
            check_pixels(width, height)
            if len(encoded) == header.end() + 3 * width * height:
                return np.frombuffer(encoded, np.uint8, offset=header.end()).reshape(height, width, 3)
        if netpbm := deep_pixels.netpbm_header(encoded):
            check_pixels(netpbm.width, netpbm.height)
            return deep_pixels.decode_netpbm(encoded, netpbm)
        with open_image(encoded) as image:
            return rgb(image)
    except UnidentifiedImageError as error:
        raise DataError(f"cannot decode {name}: {formats.advice(formats.format_of(encoded))}") from error
    except Exception as error:  # whatever Pillow's plugins make of damaged files
        raise DataError(f"cannot decode {name}: {error}; repair or remove it") from error


def rgb(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of the present frame of a Pillow image, by the rules of `decode_image`; the image stays as it is.

    Raises:
      ValueError: it has more than 16 bits a channel.
      Exception: whatever Pillow's plugins make of damaged files.
    """
    if (grey := deep_pixels.high_bytes(image)) is not None:  # convert() would clip it to white
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are of mode {image.mode}, not 8 or 16 bits a channel")
    image.load()
    if "transparency" in image.info:  # of palette and key colours; Pillow warns where it drops it itself
        image = image.copy()
        del image.info["transparency"]
    return np.asarray(image.convert("RGB"))


def open_image(encoded: bytes) -> Image.Image:
    """The file as a Pillow image of which only the header was read.

    Raises:
      TooLargeError: it has more than MAX_PIXELS.
      Exception: whatever Pillow's plugins make of damaged files.
    """
    tried = formats.pillow_formats(formats.format_of(encoded))
    if not tried:
        raise UnidentifiedImageError("no package that is installed reads this format")
    try:
        image = Image.open(io.BytesIO(encoded), formats=tried)
    except Image.DecompressionBombError as error:
        raise TooLargeError(f"it has more than {MAX_PIXELS:,} pixels") from error
    check_pixels(*image.size)
    return image


class TooLargeError(Exception):
    """An image that would take too much memory."""


def check_pixels(width: int, height: int) -> None:
    """Raises TooLargeError for an image of more than MAX_PIXELS, ValueError for one of none."""
    if not width or not height:
        raise ValueError("it has no pixels")
    if width * height > MAX_PIXELS:
        raise TooLargeError(f"it has {width} x {height} pixels, more than {MAX_PIXELS:,} altogether")


def pixels_of(image: ImageLike) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of one image, by the rules of `decode_image` in whatever form it comes.

    Args:
      image: path of an image file, its bytes, a Pillow image (its present frame), or an array of `pixels_of_array`.

    Raises:
      DataError: it cannot be read or decoded, or is none of these.
    """
    if isinstance(image, str | os.PathLike):
        try:
            encoded = read_regular(image, MAX_BYTES)
        except (OSError, ValueError) as error:  # ValueError: a path with a NUL
            raise DataError(f"cannot read {os.fspath(image)}: {first_line(error)}") from error
        return decode_image(encoded, str(os.fspath(image)))
    if isinstance(image, bytes | bytearray | memoryview):
        return decode_image(bytes(image), "the image")
    if isinstance(image, Image.Image):
        try:
            check_pixels(*image.size)
            return rgb(image)
        except Exception as error:  # of a file that is only now read: damaged, or closed
            raise DataError(
                f"cannot read the Pillow image: {first_line(error)}; repair it, or open it again"
            ) from error
    if hasattr(image, "__array__"):
        return pixels_of_array(image)
    forms = "a path, an image file's bytes, an array uint8 [H, W, 3] or a Pillow image"
    raise DataError(f"a {type(image).__name__} is no image; give {forms}")
