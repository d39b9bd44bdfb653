"""TensorBoard: event files in the workdir."""

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from stce_jax.workdir.loggers import LoggedRun


def open_log(run: LoggedRun) -> "TensorBoard":
    """A `Log` that writes an event file each time it is opened, and each time the run goes back."""
    return TensorBoard(run)


class TensorBoard:
    """A `Log`; see `open_log`."""

    def __init__(self, run: LoggedRun) -> None:
        self._directory, self._files = run.directory, 0
        self._open(run.last)

    def write(self, line: Mapping[str, Any]) -> None:
        scalars = [
            Summary.Value(tag=f"{line['split']}/{name}", simple_value=value)
            for name, value in line.items()
            if name not in ("step", "epoch", "split")
        ]
        self._events.write_event(Event(wall_time=time.time(), step=line["step"], summary=Summary(value=scalars)))

    def rewind(self, lines: Sequence[Mapping[str, Any]], last: Mapping[str, int]) -> None:
        del lines  # earlier files have them
        self._events.close()
        self._open(last)
        self.flush()

    def flush(self) -> None:
        self._events.flush()

    def close(self, summary: Mapping[str, float] | None) -> None:
        del summary
        self._events.flush()
        self._events.close()

    def _open(self, last: Mapping[str, int]) -> None:
        self._files += 1
        # Not tensorboardX's SummaryWriter: that queues events for a thread, and its flush leaves them there. Files are
        # named by the second, hence the number. It follows links, hence a name that nobody can foresee.
        suffix = f".{self._files}.{secrets.token_hex(8)}"
        self._events = EventsWriter(str(self._directory / "events"), suffix)
        # TensorBoard forgets what other files hold from this step on.
        started = SessionLog(status=SessionLog.START)
        self._events.write_event(Event(wall_time=time.time(), step=last["train"] + 1, session_log=started))
