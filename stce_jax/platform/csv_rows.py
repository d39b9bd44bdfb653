"""Rows of a CSV file that a user gives."""

import csv
import errno
import io
import os
from collections.abc import Iterator

from stce_jax.paths import read_regular


def read_rows(path: str | os.PathLike[str], limit: int) -> Iterator[tuple[int, list[str]]]:
    """Yields (the line on which it begins, from 1; its cells) of each row of a UTF-8 file; empty lines are left out.

    Names of files may be no UTF-8; they come back as they are.

    Args:
      path: of a local file.
      limit: most bytes that it may have.

    Raises:
      OSError: it cannot be read, see `read_regular`, or a row is none of CSV.
    """
    text = read_regular(path, limit).decode("utf-8-sig", errors="surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""))
    line = 1
    try:
        for row in reader:
            if row:
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise OSError(errno.EINVAL, f"line {line}: {error}", os.fspath(path)) from error
