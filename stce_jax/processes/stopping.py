"""SIGTERM and SIGINT: noticed between two steps, or at once while there is nothing to save."""

import contextlib
import signal
import socket
import threading

from stce_jax.errors import PreemptedError

NUMBERS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """While open, SIGTERM and SIGINT only set `asked` to the signal's name, so that a step is never cut in two.

    While there is nothing to save, a program that can be ended at once is, even in the middle of a compilation, during
    which Python hears of no signal. Signals reach the main thread alone; in another this does nothing.

    Args:
      leave: function (message, exit code) that ends the process, or None if that is not to be ended, as a notebook's.
    """

    def __init__(self, leave=None):
        self.asked = ""
        self._leave, self._saved = leave, "before its first step"
        self._before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._reader, self._bell = socket.socketpair()
            self._bell.setblocking(False)
            for number in NUMBERS:
                self._before[number] = signal.signal(number, self._ask)
            self._bell_before = signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
            if self._leave:
                threading.Thread(target=self._listen, name="stce signals", daemon=True).start()
        return self

    def __exit__(self, *exception):
        if self._before:
            signal.set_wakeup_fd(self._bell_before)
            for number, handler in self._before.items():
                # A process that is about to end is not to be hurried into another exit code.
                signal.signal(number, signal.SIG_IGN if self._leave and self.asked else handler)
            self._bell.close()
            if not self._leave:
                self._reader.close()

    def nothing_to_save(self, step):
        """From now on a signal ends the process at once; the last saved step is given, 0 if there is none."""
        self._saved = f"at step {step}, which is saved" if step else "before its first step"
        if self.asked:
            error = stopped(self.asked, self._saved)
            if self._leave:  # other processes may not have been asked
                self._leave(str(error), error.exit_code)
            raise error

    def something_to_save(self):
        """From now on a signal only sets `asked`."""
        self._saved = None

    def _ask(self, number, frame):
        del frame
        self.asked = signal.Signals(number).name

    def _listen(self):
        """Hears of signals while the main thread is busy outside of Python."""
        with self._reader, contextlib.suppress(OSError):
            while received := self._reader.recv(1):
                saved = self._saved
                if received[0] in NUMBERS and saved:
                    error = stopped(signal.Signals(received[0]).name, saved)
                    self._leave(str(error), error.exit_code)


def stopped(name, where):
    """The error that says that a signal has ended the run."""
    return PreemptedError(f"stopped by {name} {where}; run again to go on")


@contextlib.contextmanager
def ends_at_once(leave):
    """Turns SIGTERM and SIGINT into the exit code 75 while a program starts, when there is nothing to save yet.

    Args:
      leave: function (message, exit code) that ends the process.
    """

    def handle(number, frame):
        del frame
        error = stopped(signal.Signals(number).name, "before its first step")
        leave(str(error), error.exit_code)

    before = {number: signal.signal(number, handle) for number in NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is handle:
                signal.signal(number, handler)
