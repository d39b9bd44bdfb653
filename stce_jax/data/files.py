"""Image files that a user names: found, and read."""

import os
from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import UInt8

from stce_jax.data.decode import MAX_BYTES, decode_image
from stce_jax.data.finding import PassedOver, find_images
from stce_jax.errors import DataError
from stce_jax.paths import first_line, read_regular

PathLike = str | os.PathLike[str]


def list_images(paths: PathLike | Iterable[PathLike], report: Callable[[str], None] = lambda line: None) -> list[str]:
    """The image files that paths mean, in their order.

    Args:
      paths: of files, whatever they hold, and of folders, which mean the images in them at any depth, sorted, without
        hidden ones, see `finding.why_not`; or one such path.
      report: called once with the number of files in the folders that were passed over, if there are any.

    Raises:
      DataError: a path does not exist, or a folder holds no image or cannot be listed.
    """
    found: list[str] = []
    passed_over = PassedOver()
    for given in [paths] if isinstance(paths, str | os.PathLike) else paths:
        path = os.fspath(os.path.expanduser(given))
        if os.path.isdir(path):
            try:
                beside = PassedOver()
                inside = find_images(path, beside)
            except OSError as error:
                raise DataError(f"cannot list {error.filename}: {error.strerror}; make it readable") from error
            if not inside:
                also = f" ({beside.text()})" if beside.count else ""
                raise DataError(f"folder {path} holds no image{also}; give another, or files by their names")
            passed_over.extend(beside)
            found += inside
        elif os.path.lexists(path):
            found.append(path)
        else:
            raise DataError(f"there is no {path}; give image files, or folders with images")
    if passed_over.count:
        report(passed_over.text())
    return found


def read_image(path: PathLike) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of an image file, see `decode_image`.

    Raises:
      DataError: it cannot be read.
    """
    try:
        return decode_image(read_regular(path, MAX_BYTES), os.fspath(path))
    except OSError as error:
        raise DataError(f"cannot read {path}: {first_line(error)}") from error
