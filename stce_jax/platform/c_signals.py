"""Signals that Python cannot handle in time: its own handlers run in the main thread, between two bytecodes."""

import ctypes
import signal
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_abort_handler = None  # C holds no reference


def on_abort(explain: Callable[[], None] | None) -> None:
    """Has a function called when C++ code aborts the process, which then ends with SIGABRT; None: no longer.

    JAX aborts where it could raise an error.
    """
    global _abort_handler

    def handle(number: int) -> None:
        ctypes.CDLL(None).signal(number, None)  # the default, once this returns
        assert explain is not None
        explain()

    _abort_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle) if explain else None
    ctypes.CDLL(None).signal(signal.SIGABRT, _abort_handler)


def terminate_with_parent() -> None:
    """Asks the kernel for SIGTERM when the parent process ends, however it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
