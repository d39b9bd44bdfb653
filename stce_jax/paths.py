"""Paths of workdirs and data: local, or remote ("gs://bucket/run"), which is whatever `etils.epath` opens.

Remote storage keeps whole objects: nothing can be appended or locked, an object is written at once, and a directory is
there while anything is below it. So remote directories are never made here.
"""

import contextlib
import errno
import io
import os
import re
import stat
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
    """A local path that means the same from any directory, its last part a name; "~" is the user's home.

    Raises:
      ConfigError: it begins with "~/", and this user has no home.
    """
    expanded = os.path.expanduser(path)
    if os.fspath(expanded).partition("/")[0] == "~":  # or a directory of that name would be made
        raise ConfigError(f"cannot open {path}: this user has no home directory; set HOME, or give an absolute path")
    path = Path(expanded).absolute()
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


def user_directory(variable: str, below_home: str, option: str) -> Path:
    """Where a kind of a user's files lies: $variable, or a directory below the home.

    Args:
      variable: such as "XDG_DATA_HOME".
      below_home: such as ".local/share".
      option: what else the user can give in its place, for the message; "" for nothing.

    Raises:
      ConfigError: the variable is not set, and this user has no home.
    """
    if named := os.environ.get(variable):
        return Path(named)
    try:
        return Path.home() / below_home
    except RuntimeError as error:  # a container that runs as a user without an entry in the password file
        other = f", or give {option}" if option else ""
        raise ConfigError(f"this user has no home directory to keep data in; set HOME or {variable}{other}") from error


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a local file to read it. Everything that a user names or a folder holds is read through here.

    What is no regular file is refused at once: from a pipe nothing may ever come, and /dev/zero never ends.

    Raises:
      OSError: it cannot be opened, or is no regular file.
    """
    file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
    return file


def read_regular(path: str | os.PathLike[str], limit: int) -> bytes:
    """The bytes of a local file, see `open_regular`.

    Args:
      path: of the file.
      limit: most bytes that it may have.

    Raises:
      OSError: it cannot be read, is no regular file, or has more bytes.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size + 1) if size <= limit else b""
        while len(data) > size:  # it grows, or names no size, as those in /proc do
            size = min(2 * len(data), limit)
            data += file.read(max(0, size + 1 - len(data)))
            if len(data) > limit:
                break
        if max(size, len(data)) > limit:
            raise OSError(errno.EFBIG, f"it has more than {limit:,} bytes", os.fspath(path))
    return data


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # opening a pipe would wait for who writes into it
