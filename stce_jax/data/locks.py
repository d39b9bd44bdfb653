"""One process at a time: locks on local files, which the kernel releases however their owner ends."""

import contextlib
import fcntl
import os
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
      OSError: the file cannot be written.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if notice:
                terminal.say(notice)
            _wait(lock.fileno(), check)
        yield


def _wait(lock: int, check: Callable[[], None] | None) -> None:
    while check:
        check()
        time.sleep(PAUSE)
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(lock, fcntl.LOCK_EX)
