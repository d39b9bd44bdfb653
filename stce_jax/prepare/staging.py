"""All or nothing: a directory for what is not finished, and an orderly end on signals."""

import contextlib
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from stce_jax.errors import PreemptedError
from stce_jax.platform.terminal import say


@contextlib.contextmanager
def staging(directory: Path, name: str) -> Iterator[Path]:
    """An empty directory, which is removed afterwards; first, what a killed process left there is removed.

    Raises:
      OSError: it cannot be made.
    """
    path = directory / f"incomplete.{name}"
    if path.exists():
        say(f"removing {path}, left by a process that was killed")
        shutil.rmtree(path)
    try:
        path.mkdir()
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class _StoppedError(BaseException):
    """A signal came. Not an Exception, so that no code on the way handles it as an error of its own."""


@contextlib.contextmanager
def ends_cleanly() -> Iterator[None]:
    """Turns SIGTERM and SIGINT into a PreemptedError, after everything on the way out has cleaned up.

    Raises:
      PreemptedError: one of them came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread alone
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def stop(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # cleaning up takes a moment
        raise _StoppedError(signal.Signals(number).name)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    except _StoppedError as error:
        raise PreemptedError(f"stopped by {error}; nothing is left half-written, run again to start over") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
