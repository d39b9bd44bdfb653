"""All or nothing: a directory for what is not finished, and an orderly end on signals."""

import contextlib
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from stce_jax.errors import PreemptedError
from stce_jax.paths import remove_tree
from stce_jax.platform.terminal import say
from stce_jax.processes.stopping import NUMBERS, Exit, listening, unheard

PATIENCE, CLEANING = 5.0, 20.0  # seconds that the main thread has to hear a signal, and then to clean up


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
        remove_tree(path)


class _StoppedError(BaseException):
    """A signal came. Not an Exception, so that no code on the way handles it as an error of its own."""


@contextlib.contextmanager
def ends_cleanly(exit_process: Exit | None = None) -> Iterator[None]:
    """Turns SIGTERM and SIGINT into a PreemptedError, after everything on the way out has cleaned up.

    Args:
      exit_process: ends the process if the main thread does not hear a signal within PATIENCE, because it waits in C
        for a disk, say, or has not cleaned up within CLEANING; None if the process is not to be ended.

    Raises:
      PreemptedError: one of them came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread alone
        return
    before = {number: signal.getsignal(number) for number in NUMBERS}
    heard = threading.Event()
    name = ""

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal name
        name = signal.Signals(number).name
        heard.set()
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # cleaning up takes a moment
        raise _StoppedError

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    with _impatient(heard, exit_process):
        try:
            try:
                for number in before:
                    signal.signal(number, stop)
                yield
            finally:
                restore()
        except BaseException:
            # Once a signal came, whatever arrives here is due to it: code that it cuts in two may raise errors of its
            # own, as a lock does that was about to be taken, and others on the way may pass these on in their words.
            if not heard.is_set():
                raise
            restore()  # it may have come in the middle of that
            raise PreemptedError(f"stopped by {name}; nothing is left half-written, run again to start over") from None


@contextlib.contextmanager
def _impatient(heard: threading.Event, exit_process: Exit | None) -> Iterator[None]:
    """While open, a signal that is not heard in time, or after which cleaning up hangs, ends the process anyway."""
    if exit_process is None:
        with unheard():
            yield
        return
    done = threading.Event()

    def end_if_unheard(number: int) -> None:
        if not (heard.wait(PATIENCE) and done.wait(CLEANING)):
            name = signal.Signals(number).name
            message = f"stopped by {name}; what is half-written is removed by the next start, run again"
            exit_process(message, PreemptedError.exit_code)

    with listening(end_if_unheard):
        try:
            yield
        finally:
            done.set()
