"""Paths of workdirs and data: local, or remote ("gs://bucket/run"), which is whatever `etils.epath` opens.

Remote storage keeps whole objects: nothing can be appended or locked, an object is written at once, and a directory is
there while anything is below it. So remote directories are never made here.

Files of ours (locks, logs, temporary files) are opened by `open_own`, which follows no link; files that others may have
put where ours belong are read by `read_bytes` and `read_json`, which wait for no pipe.
"""

import contextlib
import errno
import io
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from etils import epath

from stce_jax.errors import ConfigError
from stce_jax.platform.terminal import shortened

# A local path in which no library finds a pattern, an escape or a URL.
_PLAIN = re.compile(r"[\w/.,=+@ -]*")
_LARGEST = 2**30  # bytes of a file that is read as one
_PARTIAL = re.compile(r"\.stce-[0-9a-f]{16}\.partial")  # what `whole_file` writes to


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


@contextlib.contextmanager
def plain_path(directory: epath.Path) -> Iterator[epath.Path]:
    """A directory under a name that means nothing but this directory, while the context is open.

    Some libraries take a path for a pattern ("[0]"), or part of it for an escape or a URL. For those, a local directory
    with such a name becomes /proc/self/fd/N; others stay as they are.

    Raises:
      OSError: there is no such directory.
    """
    if is_remote(directory) or _PLAIN.fullmatch(os.fspath(directory)):
        yield directory
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield epath.Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def open_own(path: str | os.PathLike[str], flags: int) -> int:
    """Opens a local file of ours by `os.open`: a lock, a log, a temporary file. Returns the descriptor.

    Raises:
      OSError: it cannot be opened; or it is a link, which may lead to a file of somebody else's, or no regular file.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP and os.path.islink(path):
            raise OSError(error.errno, f"{os.path.basename(path)} is a link (remove it)", path) from error
        if error.errno == errno.ENXIO:  # a pipe that nobody reads, or a socket
            raise OSError(error.errno, f"{os.path.basename(path)} is no regular file (remove it)", path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{os.path.basename(path)} is no regular file (remove it)", path)
    return descriptor


def read_bytes(path: epath.PathLike, limit: int = _LARGEST) -> bytes:
    """The content of a file, local or remote; OSError and `limit`, for local ones, as `read_regular`."""
    return epath.Path(path).read_bytes() if is_remote(path) else read_regular(path, limit)


def read_json(path: epath.PathLike) -> Any:
    """What a JSON file holds; for errors see `read_bytes` and `parse_json`."""
    return parse_json(read_bytes(path).decode())


def parse_json(text: str) -> Any:
    """`json.loads`. Raises ValueError, and nothing else, for whatever is no JSON."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def write_bytes(path: epath.PathLike, data: bytes | bytearray) -> None:
    """Writes a whole file, so that a reader or a crash finds what was there before or all that is new.

    Raises:
      OSError: it cannot be written.
    """
    with whole_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def whole_file(path: epath.PathLike, *, flush: bool = True) -> Iterator[BinaryIO]:
    """A binary file to be written bit by bit, that takes its place once all went well; otherwise nothing is left of it.

    Args:
      path: local or remote; a link is replaced, not followed.
      flush: wait until it is on the disk before it takes its place, so that a machine without power loses neither file.

    Raises:
      OSError: it cannot be written.
    """
    if is_remote(path):
        content = io.BytesIO()
        yield content
        epath.Path(path).write_bytes(content.getvalue())  # appears in one piece once it is complete
        return
    # A name of its own, so that two writers of one file do not mix, and no file of the user's has it.
    partial = os.path.join(os.path.dirname(path), f".stce-{os.urandom(8).hex()}.partial")
    descriptor = open_own(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            if flush:
                os.fsync(descriptor)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(partial)
        raise


def write_text(path: epath.PathLike, text: str) -> None:
    """`write_bytes` of UTF-8.

    Half a surrogate pair, which JSON can hold and UTF-8 cannot, is written as JSON and Python escape it.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))


def encoded(text: str) -> bytes:
    """UTF-8 of a text with names of files: what in them is no UTF-8 becomes the bytes that it was.

    Other halves of surrogate pairs, which JSON can hold, are written as in `write_text`.
    """
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return text.encode(errors="backslashreplace")


def remove_partials(directory: str | os.PathLike[str]) -> None:
    """Removes what a killed process left of `whole_file` in a local directory that no other process writes to."""
    with contextlib.suppress(FileNotFoundError):
        for name in filter(_PARTIAL.fullmatch, os.listdir(directory)):
            os.remove(os.path.join(directory, name))


@contextlib.contextmanager
def named_failures(action: str, advice: str, kinds: tuple[type[Exception], ...] = (OSError,)) -> Iterator[None]:
    """Turns what goes wrong with a file into one line for the user.

    Raises:
      ConfigError: "cannot ACTION: what the system says; REMEDY", in place of an error of `kinds`.
    """
    try:
        yield
    except kinds as error:
        raise ConfigError(f"cannot {action}: {first_line(error)}; {remedy(error, advice)}") from error


def remedy(error: BaseException, advice: str) -> str:
    """What to do about a file that cannot be written: `advice`, or on a full disk to make room."""
    return f"make room, or {advice}" if _fullness(error) else advice


def first_line(error: BaseException) -> str:
    """What an exception says, in one line; of a full disk no more than that, however much a library says of it."""
    line = getattr(error, "strerror", None) or _fullness(error) or next(iter(str(error).strip().splitlines()), "")
    return shortened(" ".join(line.split()), 300).rstrip(".: ") or type(error).__name__


def _fullness(error: BaseException) -> str:
    """What the system says of a full disk or quota, if an exception is about that: tensorstore and others quote it."""
    words = map(os.strerror, (errno.ENOSPC, errno.EDQUOT))
    return next((one for one in words if one in (getattr(error, "strerror", None) or str(error))), "")


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


def remove_tree(directory: Path, *, patience: float = 2.0) -> None:
    """Removes a local directory as far as it can be; for some seconds again, while threads still write into it."""
    end = time.monotonic() + patience
    while os.path.lexists(directory):
        shutil.rmtree(directory, ignore_errors=True)
        if time.monotonic() > end:
            return
        time.sleep(0.02)
