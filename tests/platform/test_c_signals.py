"""Signals that reach a process through C."""

import ctypes
import signal

from stce_jax.platform import c_signals

LIBRARY = ctypes.CDLL(None)
LIBRARY.signal.restype = ctypes.c_void_p
LIBRARY.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)


def test_an_abort_is_explained_once():
    before, explained = LIBRARY.signal(signal.SIGABRT, None), []
    try:
        c_signals.on_abort(lambda: explained.append(True))
        LIBRARY["raise"](int(signal.SIGABRT))  # returns, as abort() would not
        assert explained == [True]
        assert LIBRARY.signal(signal.SIGABRT, None) is None, "the next SIGABRT would not end the process"
        c_signals.on_abort(lambda: None)
        c_signals.on_abort(None)
        assert LIBRARY.signal(signal.SIGABRT, None) is None
    finally:
        LIBRARY.signal(signal.SIGABRT, before)
