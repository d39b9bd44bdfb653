"""SIGTERM and SIGINT: noticed between two steps, or at once while there is nothing to save.

JAX is not imported here; `stop_flag` lets the devices carry a request from one process to all.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Self

from stce_jax.errors import PreemptedError

NUMBERS = (signal.SIGTERM, signal.SIGINT)
Exit = Callable[[str, int], Any]  # ends the process with a message and an exit code


class StopSignals:
    """While open, SIGTERM and SIGINT only set `requested` to the signal's name, so that a step is never cut in two.

    While there is nothing to save, a process that may be ended at once is, even in the middle of a compilation, during
    which Python handles no signal. Signals reach only the main thread; in another thread this does nothing.

    Args:
      exit_process: None if the process is not to be ended, such as a notebook's.

    Attributes:
      requested: name of the last signal, "SIGTERM" or "SIGINT"; "" before the first.
    """

    def __init__(self, exit_process: Exit | None = None) -> None:
        self.requested = ""
        self._exit_process = exit_process
        self._where: str | None = "before its first step"  # None: there is something to save
        self._handlers_before: dict[int, Any] = {}
        self._listening = contextlib.ExitStack()

    def __enter__(self) -> Self:
        import threading

        if threading.current_thread() is threading.main_thread():
            hearing = listening(self._end_if_nothing_to_save) if self._exit_process else unheard()
            self._listening.enter_context(hearing)
            for number in NUMBERS:
                self._handlers_before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._handlers_before:
            self._listening.close()
            for number, handler in self._handlers_before.items():
                # A second signal must not change the exit code of a process that is about to end.
                signal.signal(number, signal.SIG_IGN if self._exit_process and self.requested else handler)

    def end_at_once(self, step: int) -> None:
        """From now on a signal ends the process at once: nothing is newer than the saved step; 0 if there is none."""
        self._where = f"at step {step}, which is saved" if step else "before its first step"
        if self.requested:
            error = stopped(self.requested, self._where)
            if self._exit_process:  # other processes may have received no signal
                self._exit_process(str(error), error.exit_code)
            raise error

    def finish_step_first(self) -> None:
        """From now on a signal only sets `requested`: there is something to save."""
        self._where = None

    def _request(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.requested = signal.Signals(number).name

    def _end_if_nothing_to_save(self, number: int) -> None:
        if (where := self._where) and self._exit_process:
            _end(self._exit_process, number, where)


def stopped(name: str, where: str) -> PreemptedError:
    """The error that reports that a signal has ended the run."""
    return PreemptedError(f"stopped by {name} {where}; run again to resume")


def _end(exit_process: Exit, number: int, where: str) -> None:
    error = stopped(signal.Signals(number).name, where)
    exit_process(str(error), error.exit_code)


@contextlib.contextmanager
def exit_on_signal(exit_process: Exit, where: str = "before its first step") -> Iterator[None]:
    """Turns SIGTERM and SIGINT into the exit code 75 while there is nothing to save.

    Even while the main thread waits outside of Python, as JAX does for other processes. To be used in the main thread.

    Args:
      exit_process: ends the process, with a message and an exit code.
      where: what the message says of the run.
    """
    with _acting(lambda number: _end(exit_process, number, where)):
        yield


@contextlib.contextmanager
def interrupted_by_signal(exit_process: Exit) -> Iterator[None]:
    """Ends a process that keeps nothing at SIGINT and SIGTERM, with the exit codes that shells give: 130 and 143.

    See `exit_on_signal`.
    """

    def interrupt(number: int) -> None:
        exit_process("interrupted" if number == signal.SIGINT else "terminated", 128 + number)

    with _acting(interrupt):
        yield


@contextlib.contextmanager
def _acting(act: Callable[[int], None]) -> Iterator[None]:
    def handle(number: int, frame: FrameType | None) -> None:
        """Nothing: the thread that listens acts."""

    with listening(act):
        before = {number: signal.signal(number, handle) for number in NUMBERS}
        try:
            yield
        finally:
            for number, handler in before.items():
                if signal.getsignal(number) is handle:
                    signal.signal(number, handler)


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """While open, no listening thread of another context acts on a signal: a handler of Python's does."""
    before = signal.set_wakeup_fd(-1)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)


@contextlib.contextmanager
def listening(act: Callable[[int], None]) -> Iterator[None]:
    """Calls act(number) for each signal, in a thread of its own: the main thread may be busy outside of Python."""
    import socket
    import threading

    reader, writer = socket.socketpair()

    def listen() -> None:
        with reader, contextlib.suppress(OSError):
            while received := reader.recv(1):
                if received[0] in NUMBERS:
                    act(received[0])

    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=listen, name="stce signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()
