"""On the host: encoded bytes to a uint8 crop of the training size. Pixels leave the host as bytes, nothing more.

Shape letters: H W image height and width.
"""

import io

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from stce_jax.errors import DataError


def decode_image(encoded, name):
    """Decodes an image file of any format Pillow reads; JPEGs take the faster simplejpeg.

    Args:
      encoded: the file's bytes.
      name: what to call the image in an error message.

    Returns:
      [H, W, 3] uint8, red green blue.

    Raises:
      DataError: the bytes are no readable image.
    """
    if encoded[:3] == b"\xff\xd8\xff":
        try:
            return simplejpeg.decode_jpeg(encoded, colorspace="RGB")
        except ValueError:
            pass  # a colour space that it does not know, or damage that Pillow may forgive
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if image.mode.startswith("I;16"):  # convert() would clip it to white; the high byte, as in 16-bit colour
                return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
            if image.mode in ("I", "F"):
                raise ValueError(f"its pixels are of mode {image.mode}, not 8 or 16 bits a channel")
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise DataError(f"cannot decode {name}: it is no image that Pillow knows; repair or remove it") from error
    except Exception as error:  # whatever Pillow's plugins make of damaged files
        raise DataError(f"cannot decode {name}: {error}; repair or remove it") from error


def center_crop(image, size, fraction):
    """DeiT's evaluation view: short side to size / fraction (bicubic), then the central square; rounds as torchvision.

    Args:
      image: [H, W, 3] uint8.
      size: side of the result in pixels.
      fraction: share of the short side that the square covers, 0 < fraction <= 1; DeiT's is 0.875.

    Returns:
      [size, size, 3] uint8.
    """
    height, width, _ = image.shape
    short, scaled = min(height, width), int(size / fraction)
    resized = Image.fromarray(image).resize(
        (scaled * width // short, scaled * height // short), Image.Resampling.BICUBIC
    )
    left, top = round((resized.width - size) / 2), round((resized.height - size) / 2)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def random_resized_crop(rng, image, size, *, area, ratio):
    """A random part of the image, resized to a square (bicubic): Inception's augmentation, as torchvision draws it.

    Args:
      rng: np.random.Generator.
      image: [H, W, 3] uint8.
      size: side of the result in pixels.
      area: (least, most) share of the image's area, 0..1.
      ratio: (least, most) width over height, drawn log-uniformly.

    Returns:
      [size, size, 3] uint8.
    """
    top, left, height, width = _draw_box(rng, *image.shape[:2], area, ratio)
    box = (left, top, left + width, top + height)
    return np.asarray(Image.fromarray(image).crop(box).resize((size, size), Image.Resampling.BICUBIC))


def _draw_box(rng, height, width, area, ratio):
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
