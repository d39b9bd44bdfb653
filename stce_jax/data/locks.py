"""One process at a time: locks on local files, which the kernel releases however their owner ends."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: str | Path, notice: str = "") -> Iterator[None]:
    """Holds the exclusive lock on a file, which is made if it is not there; waits while another process holds it.

    Args:
      path: the file; its directory is made, too.
      notice: printed before waiting, if not empty.

    Raises:
      OSError: the file cannot be written.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if notice:
                print(notice, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
