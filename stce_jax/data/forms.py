"""The forms in which a program may have an image, and the rules for arrays; for files see `decode`.

Shape letters: H W image height and width.
"""

import os
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from stce_jax.errors import DataError
from stce_jax.paths import first_line


class ArrayLike(Protocol):
    """What NumPy reads as an array: its own, JAX's, those of other libraries on the host."""

    def __array__(self) -> np.ndarray: ...


ImageLike = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | ArrayLike


def pixels_of_array(image: ArrayLike) -> UInt8[np.ndarray, "H W 3"]:
    """Red, green and blue of an array uint8 [H, W] or [H, W, C]: C is 1 grey, 2 grey and alpha, 3 colours, 4 and alpha.

    As of files, alpha is dropped, never blended, and grey comes in three equal channels.

    Raises:
      DataError: it has another type or shape, or no pixels.
    """
    try:
        array: Any = np.asarray(image)
    except Exception as error:  # of another library's array, on a device of its own
        raise DataError(f"a {type(image).__name__} gives no array: {first_line(error)}; give one of NumPy") from error
    if array.dtype != np.uint8:
        scaled = "; of numbers from 0 to 1 make them by (255 * x).round().astype('uint8')"
        raise DataError(f"the image's pixels are {array.dtype}; give uint8{scaled if array.dtype.kind == 'f' else ''}")
    shape = f"an array of shape {array.shape}"
    if array.ndim == 4:
        raise DataError(f"{shape} holds several images; give one at a time: [H, W, 3]")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or not 1 <= array.shape[2] <= 4 or not array.size:
        last = ", channels last" if array.ndim == 3 and array.shape[0] in (1, 3) else ""
        raise DataError(f"{shape} is no image; give [H, W], [H, W, 3] or [H, W, 4]{last}")
    return array[:, :, :3] if array.shape[2] > 2 else np.repeat(array[:, :, :1], 3, axis=2)
