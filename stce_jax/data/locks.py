"""One process at a time: locks on local files, which the kernel releases however their owner ends.

The lock is flock's, on an open file. A child made by fork would share it and outlive its parent, so that it closes
what it inherits. Nothing is read from the file or written to it here, and no link is followed.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from stce_jax.paths import open_own
from stce_jax.platform import terminal

PAUSE = 0.1  # seconds between two attempts
_held: set[int] = set()  # descriptors


def _forget_all() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_all)


def take(path: str | os.PathLike[str]) -> int:
    """Takes the exclusive lock on a file, which is made if it is not there; returns the descriptor for `release`.

    Raises:
      BlockingIOError: another process, or another part of this one, holds it.
      OSError: the file cannot be written; see `open_own`.
    """
    while True:
        descriptor = open_own(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if holds(descriptor, path):
                _held.add(descriptor)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # it was deleted or replaced since it was opened


def release(descriptor: int) -> None:
    """Gives back what `take` returned; a child of the process that took it has nothing to give back."""
    if descriptor in _held:
        _held.discard(descriptor)
        os.close(descriptor)


def holds(descriptor: int, path: str | os.PathLike[str]) -> bool:
    """Whether the path still is the file of a descriptor, which it is not once it was deleted or moved.

    Raises:
      OSError: that cannot be found out now.
    """
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return False


@contextlib.contextmanager
def locked(path: str | Path, notice: str = "", check: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds the exclusive lock on a file, which is made if it is not there; waits while another process holds it.

    Args:
      path: the file; its directory is made, too.
      notice: printed before waiting, if not empty.
      check: called again and again while waiting; what it raises ends the wait.

    Raises:
      OSError: the file cannot be written; see `open_own`.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    while (descriptor := _try(path)) is None:
        if notice:
            terminal.say(notice)
            notice = ""
        if check:
            check()
        time.sleep(PAUSE)
    try:
        yield
    finally:
        release(descriptor)


def _try(path: str | Path) -> int | None:
    with contextlib.suppress(BlockingIOError):
        return take(path)
    return None
