"""One process at a time: locks on local files, which the kernel releases however their owner ends."""

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from stce_jax.platform import terminal

PAUSE = 0.2  # seconds between two attempts


@contextlib.contextmanager
def locked(path: str | Path, notice: str = "", check: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds the exclusive lock on a file, which is made if it is not there; waits while another process holds it.

    Args:
      path: the file; its directory is made, too.
      notice: printed before waiting, if not empty.
      check: called again and again while waiting; what it raises ends the wait.

    Raises:
      OSError: the file cannot be written, or something else lies in its place: a link, a pipe.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    lock = _open(path)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if notice:
                terminal.say(notice)
            _wait(lock, check)
        yield
    finally:
        os.close(lock)


def _open(path: str | Path) -> int:
    """Opens the file and changes nothing in it: whatever lies there may be the user's."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "a link lies in the place of the lock, remove it", os.fspath(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(lock).st_mode):
        os.close(lock)
        raise OSError(errno.EINVAL, "no regular file lies in the place of the lock, remove it", os.fspath(path))
    return lock


def _wait(lock: int, check: Callable[[], None] | None) -> None:
    while check:
        check()
        time.sleep(PAUSE)
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(lock, fcntl.LOCK_EX)
