"""Images of more than 8 bits a channel: of each 16 bits the high byte counts.

Pixels of fewer bits (10, 12, 14) are scaled to 16 first. Pixels with a sign are moved up by half their range, so that
their order stays: -32768 is black.

Shape letters: H W image height and width.
"""

import re
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

_SPACE = rb"(?:[ \t\r\n\v\f]|#[^\r\n]*[\r\n])+"
_NETPBM = re.compile(rb"P([2356])" + 3 * (_SPACE + rb"([0-9]{1,9})") + rb"[ \t\r\n\v\f]")
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF's tags
_WHITE_IS_ZERO, _SIGNED = 0, (2,)


class NetpbmHeader(NamedTuple):
    """The header of a PGM or PPM file."""

    plain: bool  # whether the pixels are decimal numbers
    channels: int
    width: int
    height: int
    maximum: int
    size: int  # bytes of the header


def netpbm_header(encoded: bytes) -> NetpbmHeader | None:
    """The header of a PGM or PPM file of more than 8 bits a channel; None for any other file.

    Pillow scales such greys to 16 bits, and such colours to 8.
    """
    match = _NETPBM.match(encoded)
    if not match:
        return None
    kind, width, height, maximum = map(int, match.groups())
    if not 255 < maximum < 65536:
        return None
    return NetpbmHeader(kind < 4, 3 if kind in (3, 6) else 1, width, height, maximum, match.end())


def decode_netpbm(encoded: bytes, header: NetpbmHeader) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of a file of `netpbm_header`, which are not to be too many.

    Raises:
      ValueError: there are fewer than the header says, or no numbers.
    """
    _, channels, width, height, maximum, size = header
    count = channels * width * height
    if not count:
        raise ValueError("it has no pixels")
    if header.plain:
        words = re.sub(rb"#[^\r\n]*", b"", encoded[size:]).split(maxsplit=count)[:count]
        found = np.array([int(word) for word in words], np.int64)
    else:
        found = np.frombuffer(encoded[size : size + 2 * count], ">u2", count=min(count, (len(encoded) - size) // 2))
    if len(found) < count or found.min() < 0:
        raise ValueError(f"it is cut off: {len(found):,} of {count:,} values")
    grey = _high_byte(found, maximum).reshape(height, width, channels)
    return grey if channels == 3 else np.repeat(grey, 3, axis=2)


def high_bytes(image: Image.Image) -> UInt8[np.ndarray, "H W"] | None:
    """The pixels of a grey image that Pillow opened with 16 bits; None for any other image."""
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS, ())
    if image.mode == "I" and tuple(bits) == (16,) and tuple(tags.get(_SAMPLE_FORMAT, ())) == _SIGNED:
        pixels, maximum = np.asarray(image) + 2**15, 65535
    elif image.mode.startswith("I;16"):
        pixels, maximum = np.asarray(image), 2 ** min((16, *bits)) - 1
    else:
        return None
    grey = _high_byte(pixels, maximum)
    return 255 - grey if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey


def _high_byte(values: np.ndarray, maximum: int) -> np.ndarray:
    """The high byte of values 0..maximum, scaled to 16 bits as Pillow scales those of a PGM."""
    if maximum != 65535:
        # uint64, for 65535**2 needs 32 bits and half of the maximum is added.
        values = (np.minimum(values, maximum).astype(np.uint64) * 65535 + maximum // 2) // maximum
    return (values >> 8).astype(np.uint8)
