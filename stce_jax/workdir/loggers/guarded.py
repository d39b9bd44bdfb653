"""A log that fails softly."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stce_jax.paths import first_line
from stce_jax.platform import terminal
from stce_jax.workdir.loggers import Log


class Guarded:
    """A `Log` that ends no run: the first error of what it calls gives one warning and switches that off.

    Args:
      name: that of the logger.
      open_log: makes the log.
    """

    def __init__(self, name: str, open_log: Callable[[], Log]) -> None:
        self._name = name
        self._log: Any = None
        self._log = self._softly(open_log)

    def write(self, line: Mapping[str, Any]) -> None:
        self._call("write", line)

    def rewind(self, lines: Sequence[Mapping[str, Any]], last: Mapping[str, int]) -> None:
        self._call("rewind", lines, last)

    def flush(self) -> None:
        self._call("flush")

    def close(self, summary: Mapping[str, float] | None) -> None:
        self._call("close", summary)

    def wait(self, seconds: float) -> None:
        """Nothing: what was called has returned."""

    def _call(self, method: str, *arguments: Any) -> None:
        if self._log is not None:
            self._softly(getattr(self._log, method), *arguments)

    def _softly(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except (Exception, SystemExit) as error:  # of a service anything
            self._log = None
            reason = first_line(error) or type(error).__name__
            terminal.warn(f"{self._name} is off until the run is resumed: {reason}; training goes on")
            return None
