"""Watching a run's steps: one that takes too long has the stacks of all threads printed."""

import faulthandler
import sys
import threading
import time
from typing import Self

from stce_jax.platform import terminal

POLL = 0.5  # seconds between two checks of the step's duration, at most


class Watch:
    """Prints what all threads are doing when a step takes too long; the run keeps waiting. A context manager.

    Args:
      step_timeout: seconds.
      name: of this process, for people; "" if it is the only one.
    """

    def __init__(self, step_timeout: float, name: str = "") -> None:
        self._timeout, self._name = step_timeout, f"{name}: " if name else ""
        self._now: tuple[str, float] | None = None  # (what, since), replaced as a whole
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stce watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed.set()
        self._thread.join()

    def step(self, step: int, what: str = "step") -> None:
        """Starts the clock of step 7, of evaluation 7; what came before has ended."""
        self._now = (f"{what} {step}", time.monotonic())

    def pause(self) -> None:
        """Stops the clock: what begins may take any time, such as compilation."""
        self._now = None

    def _run(self) -> None:
        reported = None
        while not self._closed.wait(min(POLL, self._timeout / 4)):
            now = self._now
            if now and now is not reported and time.monotonic() - now[1] > self._timeout:
                reported = now
                terminal.warn(f"{self._name}{now[0]} has taken {self._timeout:g} s; all threads:")
                faulthandler.dump_traceback(sys.stderr, all_threads=True)
