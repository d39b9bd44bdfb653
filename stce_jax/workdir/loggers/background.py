"""A log in a thread of its own: a service may be slow, or not answer at all."""

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stce_jax.platform import life, terminal
from stce_jax.workdir.loggers import Log
from stce_jax.workdir.loggers.guarded import Guarded

POLL = 0.5  # seconds
MOST = 10_000  # lines that wait for a service before it is given up


class Background:
    """A `Log` whose methods return at once: a thread makes the log, and calls it. For the arguments see `Guarded`."""

    def __init__(self, name: str, open_log: Callable[[], Log]) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[tuple[str, tuple[Any, ...]]] = queue.SimpleQueue()
        self._given_up = False
        self._thread = threading.Thread(target=self._run, args=(open_log,), name=f"stce {name}", daemon=True)
        self._thread.start()

    def write(self, line: Mapping[str, Any]) -> None:
        if self._calls.qsize() >= MOST and not self._given_up:
            self._give_up(f"has not taken {MOST:,} lines")
        if not self._given_up:
            self._calls.put(("write", (line,)))

    def rewind(self, lines: Sequence[Mapping[str, Any]], last: Mapping[str, int]) -> None:
        self._calls.put(("rewind", (lines, last)))

    def flush(self) -> None:
        """Nothing: the run does not wait for a service."""

    def close(self, summary: Mapping[str, float] | None) -> None:
        self._calls.put(("close", (summary,)))

    def wait(self, seconds: float) -> None:
        """Returns once the log is closed, or after so many seconds, with a warning."""
        if self._given_up:
            return
        self._thread.join(max(0.0, seconds))
        if self._thread.is_alive():
            self._give_up("does not end")

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        life.exit_may_hang()
        terminal.warn(f"{self._name} {reason} and is left behind; a run that is resumed sends it what it lacks")

    def _run(self, open_log: Callable[[], Log]) -> None:
        log = Guarded(self._name, open_log)
        method = ""
        while method != "close":
            try:
                method, arguments = self._calls.get(timeout=POLL)
            except queue.Empty:
                method, arguments = "flush", ()
            getattr(log, method)(*arguments)
