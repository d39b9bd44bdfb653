"""Image files that a user names: found, and read."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from stce_jax.data.decode import decode_image
from stce_jax.data.records import is_image, walk_files
from stce_jax.errors import DataError
from stce_jax.paths import first_line

PathLike = str | os.PathLike[str]


def list_images(paths: PathLike | Iterable[PathLike]) -> list[str]:
    """The image files that paths mean, in their order.

    Args:
      paths: of files, with any suffix, and of folders, which mean the image files in them at any depth, sorted, without
        hidden ones; or one such path.

    Raises:
      DataError: a path does not exist, or a folder holds no image or cannot be listed.
    """
    found: list[str] = []
    for given in [paths] if isinstance(paths, str | os.PathLike) else paths:
        path = os.fspath(os.path.expanduser(given))
        if os.path.isdir(path):
            try:
                inside = sorted(file for file in walk_files(path) if is_image(os.path.basename(file)))
            except OSError as error:
                raise DataError(f"cannot list {error.filename}: {error.strerror}; make it readable") from error
            if not inside:
                raise DataError(f"folder {path} holds no image; give another, or files by their names")
            found += inside
        elif os.path.lexists(path):
            found.append(path)
        else:
            raise DataError(f"there is no {path}; give image files, or folders with images")
    return found


def read_image(path: PathLike) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of an image file, see `decode_image`.

    Raises:
      DataError: it cannot be read.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe, say, from which nothing may ever come
            raise DataError(f"cannot read {path}: it is no regular file")
        return decode_image(Path(path).read_bytes(), os.fspath(path))
    except OSError as error:
        raise DataError(f"cannot read {path}: {first_line(error)}") from error
