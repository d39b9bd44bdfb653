"""SIGTERM and SIGINT: noticed between two steps, or at once while there is nothing to save.

JAX is not imported here; `stop_flag` lets the devices carry a request from one process to all.
"""

import contextlib
import signal
import socket
import threading
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

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            for number in NUMBERS:
                self._handlers_before[number] = signal.signal(number, self._request)
            self._wakeup_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            if self._exit_process:
                threading.Thread(target=self._listen, name="stce signals", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._handlers_before:
            signal.set_wakeup_fd(self._wakeup_before)
            for number, handler in self._handlers_before.items():
                # A second signal must not change the exit code of a process that is about to end.
                signal.signal(number, signal.SIG_IGN if self._exit_process and self.requested else handler)
            self._writer.close()
            if not self._exit_process:
                self._reader.close()

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

    def _listen(self) -> None:
        """Receives signals while the main thread is busy outside of Python."""
        assert self._exit_process
        with self._reader, contextlib.suppress(OSError):
            while received := self._reader.recv(1):
                where = self._where
                if received[0] in NUMBERS and where:
                    error = stopped(signal.Signals(received[0]).name, where)
                    self._exit_process(str(error), error.exit_code)


def stopped(name: str, where: str) -> PreemptedError:
    """The error that reports that a signal has ended the run."""
    return PreemptedError(f"stopped by {name} {where}; run again to resume")


@contextlib.contextmanager
def exit_on_signal(exit_process: Exit, where: str = "before its first step") -> Iterator[None]:
    """Turns SIGTERM and SIGINT into the exit code 75 while a program starts, when there is nothing to save yet."""

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        error = stopped(signal.Signals(number).name, where)
        exit_process(str(error), error.exit_code)

    before = {number: signal.signal(number, handle) for number in NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is handle:
                signal.signal(number, handler)
