"""Paths of workdirs and data: local, or remote ("gs://bucket/run"), which is whatever `etils.epath` opens.

Remote storage keeps whole objects: nothing can be appended or locked, an object is written at once, and a directory is
there while anything is below it. So remote directories are never made here.
"""

import contextlib
import io
import os
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from etils import epath

from stce_jax.errors import ConfigError


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is a URL such as gs://bucket/run."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", os.fspath(path)) is not None


def open_path(path: epath.PathLike) -> epath.Path:
    """An `epath.Path`: absolute if it is local, with "~" the user's home; a remote one as it is.

    Raises:
      ConfigError: nothing opens such a URL, a package for it is missing, or the storage does not answer.
    """
    if not is_remote(path):
        return epath.Path(absolute(path))
    try:
        remote = epath.Path(path)
    except KeyError as error:  # of a scheme that epath does not know
        raise ConfigError(f"cannot open {path}: nothing reads {error}; give a local path, or gs://...") from error
    try:
        remote.exists()
    except Exception as error:  # ImportError, and each storage's own for its network, names and permissions
        advice = "install it" if isinstance(error, ImportError) else "check its name, the network and the credentials"
        raise ConfigError(f"cannot open {path}: {first_line(error)}; {advice}") from error
    return remote


def absolute(path: epath.PathLike) -> Path:
    """A local path that means the same from any directory, its last part a name; "~" is the user's home."""
    path = Path(os.path.expanduser(path)).absolute()
    return Path(os.path.realpath(path)) if ".." in path.parts else path


def write_bytes(path: epath.PathLike, data: bytes | bytearray) -> None:
    """Writes a whole file, so that a reader or a crash finds what was there before or all that is new.

    Raises:
      OSError: it cannot be written.
    """
    with whole_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def whole_file(path: epath.PathLike) -> Iterator[BinaryIO]:
    """A binary file to be written bit by bit, that takes its place once all went well; otherwise nothing is left of it.

    Raises:
      OSError: it cannot be written.
    """
    if is_remote(path):
        content = io.BytesIO()
        yield content
        epath.Path(path).write_bytes(content.getvalue())  # appears in one piece once it is complete
        return
    partial = f"{os.fspath(path)}.partial"
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(partial)
        raise


def write_text(path: epath.PathLike, text: str) -> None:
    """`write_bytes` of UTF-8."""
    write_bytes(path, text.encode())


@contextlib.contextmanager
def named_failures(action: str, advice: str, kinds: tuple[type[Exception], ...] = (OSError,)) -> Iterator[None]:
    """Turns what goes wrong with a file into one line for the user.

    Raises:
      ConfigError: "cannot ACTION: what the system says; ADVICE", in place of an error of `kinds`.
    """
    try:
        yield
    except kinds as error:
        raise ConfigError(f"cannot {action}: {first_line(error)}; {advice}") from error


def first_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    line = getattr(error, "strerror", None) or next(iter(str(error).strip().splitlines()), "")
    return textwrap.shorten(line, 300, placeholder=" ...").rstrip(".: ") or type(error).__name__
