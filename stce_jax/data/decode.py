"""On the host: from encoded bytes to a uint8 crop of the training size. Pixels leave the host as bytes.

Shape letters: H W image height and width.
"""

import functools
import io
import os
import re
import warnings
from collections.abc import Callable

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from stce_jax.data import deep_pixels, formats
from stce_jax.data.forms import ImageLike, pixels_of_array
from stce_jax.errors import ConfigError, DataError
from stce_jax.paths import first_line, read_regular

MAX_PIXELS = 89_478_485  # of an image; a quarter of a GiB as RGB, where Pillow begins to warn
MAX_BYTES = 256 * 2**20  # of an image file; what claims or turns out to be larger is refused
# Such images are refused; Pillow's warning would only repeat that.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Damaged EXIF data; their orientation is not applied anyway.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")

# What `raw_file` writes. Pillow reads any other kind of PPM.
_RAW_HEADER = re.compile(rb"P6\n([1-9][0-9]{0,8}) ([1-9][0-9]{0,8})\n255\n")

LONGEST = 16  # short sides; only this much of a long side is resized for the central square
INTERPOLATIONS = ("bicubic", "bilinear", "lanczos", "box", "hamming", "nearest")  # Pillow's, of the evaluation's view


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


def raw_file(image: UInt8[np.ndarray, "H W 3"], short_side: int) -> bytes:
    """Pixels as a file that `decode_image` need not decode: binary PPM, a header and the pixels.

    Images with a longer short side are first resized to `short_side` pixels, as `center_crop` does: so the evaluation's
    view of size 224 and fraction 0.875 is the same to the bit at a short side of 256, unless the image is more than
    LONGEST times as long as wide.
    """
    resized = _with_short_side(image, short_side) if min(image.shape[:2]) > short_side else Image.fromarray(image)
    return b"P6\n%d %d\n255\n" % resized.size + resized.tobytes()


def _with_short_side(
    image: UInt8[np.ndarray, "H W 3"], length: int, interpolation: str = INTERPOLATIONS[0]
) -> Image.Image:
    """The image resized so that its short side has `length` pixels; rounds as torchvision."""
    height, width, _ = image.shape
    short = min(height, width)
    size = (length * width // short, length * height // short)
    return Image.fromarray(image).resize(size, Image.Resampling[interpolation.upper()])


def center_crop(
    image: UInt8[np.ndarray, "H W 3"], size: int, fraction: float, interpolation: str = INTERPOLATIONS[0]
) -> UInt8[np.ndarray, "size size 3"]:
    """DeiT's evaluation view: short side to size / fraction, then the central square; rounds as torchvision.

    Args:
      image: of any size.
      size: side of the result in pixels.
      fraction: share of the short side that the square covers, 0 < fraction <= 1; DeiT's is 0.875.
      interpolation: one of `INTERPOLATIONS`.
    """
    height, width, _ = image.shape
    short, scaled = min(height, width), int(size / fraction)
    if max(height, width) > LONGEST * short:  # of a 1 x 10,000 image's 256 x 2,560,000 pixels only the middle is seen
        rows, columns = (min(length, LONGEST * short) for length in (height, width))
        top, left = (height - rows) // 2, (width - columns) // 2
        image = image[top : top + rows, left : left + columns]
    resized = _with_short_side(image, scaled, interpolation)
    left, top = round((resized.width - size) / 2), round((resized.height - size) / 2)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


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


def read_view(
    image: ImageLike, *, size: int, fraction: float, interpolation: str = INTERPOLATIONS[0]
) -> UInt8[np.ndarray, "size size 3"]:
    """DeiT's evaluation view of an image in any form that `pixels_of` takes, see `center_crop`; raises as that does."""
    return center_crop(pixels_of(image), size, fraction, interpolation)


def random_resized_crop(
    rng: np.random.Generator,
    image: UInt8[np.ndarray, "H W 3"],
    size: int,
    *,
    area: tuple[float, float],
    ratio: tuple[float, float],
    resize: str = "pillow",
) -> UInt8[np.ndarray, "size size 3"]:
    """A random part of the image, resized to a square (bicubic): Inception's augmentation, as torchvision draws it.

    Args:
      rng: source of the draws.
      image: of any size.
      size: side of the result in pixels.
      area: minimum and maximum of the part's share of the image's area, 0..1.
      ratio: minimum and maximum of its width over its height, drawn log-uniformly.
      resize: "pillow", or "simd": the same bicubic by vector instructions, in a fifth of the time. Both first shorten
        the rows and then the columns, except Pillow 13, which takes tall parts the other way round; in the same order
        they differ by at most 2 of 255 levels.

    Raises:
      ConfigError: "simd" is not installed.
    """
    top, left, height, width = _draw_box(rng, image.shape[0], image.shape[1], area, ratio)
    part = image[top : top + height, left : left + width]
    if resize == "simd":
        return simd_resize()(part, size)
    picture = Image.fromarray(np.ascontiguousarray(part))
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))


@functools.cache
def simd_resize() -> Callable[[UInt8[np.ndarray, "H W 3"], int], UInt8[np.ndarray, "size size 3"]]:
    """The function (image, size) -> resized image; ConfigError if its package is not installed."""
    try:
        import cykooz_resizer as simd
    except ImportError as error:
        raise ConfigError(
            'config.augment.resize="simd" needs the package cykooz-resizer; install it, or use "pillow"'
        ) from error
    pixels, bicubic = simd.PixelType.U8x3, simd.ResizeAlg.convolution(simd.FilterType.catmull_rom)
    options = simd.ResizeOptions(resize_alg=bicubic, use_alpha=False)

    def resize(image: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
        height, width, _ = image.shape
        whole = simd.ImageData(width, height, pixels, image.tobytes())
        short, square = simd.ImageData(size, height, pixels), simd.ImageData(size, size, pixels)
        resizer = simd.Resizer()  # not thread-safe
        resizer.resize(whole, short, options)
        resizer.resize(short, square, options)
        return np.frombuffer(square.get_buffer(), np.uint8).reshape(size, size, 3)

    return resize


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
