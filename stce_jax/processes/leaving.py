"""The end of a run of several processes, when its work is done: no reason to wait, or to fail, for anyone."""

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator

import jax
from jax._src import distributed  # its state has no public name

from stce_jax.platform.c_signals import on_abort


def shut_down(*, complete: bool, timeout: float) -> None:
    """Has JAX leave the run; or keeps its parts until the process exits, if a process is gone that it would wait for.

    Args:
      complete: whether all processes are there.
      timeout: seconds to wait for JAX, which waits for the others.
    """
    thread = threading.Thread(target=jax.distributed.shutdown, name="stce leaving", daemon=True)
    if complete:
        thread.start()
        thread.join(timeout)
        if not thread.is_alive():
            on_abort(None)
            return
    # JAX would shut them down while Python exits, or Python delete them: they would wait, and abort.
    state = distributed.global_state
    for kept in (state.client, state.service):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
    state.client = state.service = None


@contextlib.contextmanager
def without_stderr() -> Iterator[None]:
    """Drops what is written to standard error, by C++ too."""
    sys.stderr.flush()
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)
