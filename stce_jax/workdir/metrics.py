"""What a run measures: `metrics.jsonl` (one object per line), TensorBoard events, and `skipped.jsonl`."""

import contextlib
import errno
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any, Self

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from stce_jax.errors import ConfigError
from stce_jax.paths import first_line, is_remote, open_path, write_bytes, write_text
from stce_jax.workdir.claim import LostClaimError

FILE_NAME = "metrics.jsonl"
SKIPPED_FILE_NAME = "skipped.jsonl"


class MetricsLog:
    """A workdir's metrics.jsonl and TensorBoard events; a context manager.

    In a local workdir each line is on disk once it is written. A remote workdir's files can only be written whole:
    `flush` copies them there; lines since the last flush are those that a resumed run writes again.

    Args:
      workdir: the directory; must exist, if it is local.
      after_step: the step that training resumes from. Lines of later steps, left by a run that died after writing
        them, are removed, so that each (split, step) occurs once.
      evaluated: whether that step's evaluation is done; if not, its line is removed, too.
      writes: False makes every method do nothing: of several processes only one writes.
    """

    def __init__(
        self, workdir: str | PurePath, *, after_step: int, evaluated: bool = True, writes: bool = True
    ) -> None:
        self._writes = writes
        if not writes:
            return
        self._workdir = open_path(workdir)
        self._closing = contextlib.ExitStack()
        with self._named_failures():
            if is_remote(self._workdir):
                self._directory = Path(self._closing.enter_context(tempfile.TemporaryDirectory(prefix="stce_metrics")))
            else:
                self._directory = Path(self._workdir)
            self._times_opened = 0
            self._open(read_metrics(workdir), after_step, evaluated)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writes:
            with self._closing:
                try:
                    if not isinstance(error, LostClaimError):  # the files are another job's by now
                        self.flush()
                except ConfigError:
                    if error is None:  # else there is something more important to say
                        raise
                finally:
                    self._close()

    def write(self, *, step: int, epoch: float, split: str, **values: float) -> None:
        """Writes one line; `values` are loss, top1, top5 (fractions), learning_rate, images_per_second.

        Values that are not finite become null, for JSON has no word for them; TensorBoard gets them as they are.

        Raises:
          ConfigError: it cannot be written.
        """
        if not self._writes:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        scalars = [Summary.Value(tag=f"{split}/{name}", simple_value=value) for name, value in values.items()]
        with self._named_failures():
            line = _line({"step": step, "epoch": epoch, "split": split, **finite}).encode()
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._events.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))

    def flush(self) -> None:
        """Returns once all is on disk, or in the remote workdir; to be called before a checkpoint is saved."""
        if not self._writes:
            return
        with self._named_failures():
            self._events.flush()
            os.fsync(self._file.fileno())
            if is_remote(self._workdir):
                for path in self._directory.iterdir():
                    write_bytes(self._workdir / path.name, path.read_bytes())

    def rewind(self, step: int, *, evaluated: bool = True) -> None:
        """Drops the lines of later steps: the run goes back to `step`; for `evaluated` see above."""
        if not self._writes:
            return
        with self._named_failures():
            self._close()
            self._open(read_metrics(self._directory), step, evaluated)
        self.flush()

    def _open(self, lines: list[dict[str, Any]], after_step: int, evaluated: bool) -> None:
        path = self._directory / FILE_NAME
        last = after_step if evaluated else after_step - 1
        kept = [line for line in lines if line["step"] <= (last if line["split"] == "eval" else after_step)]
        write_text(path, "".join(map(_line, kept)))
        self._file = path.open("ab", buffering=0)
        self._times_opened += 1
        # Not tensorboardX's SummaryWriter: that queues events for a thread, and its flush leaves them there. Files are
        # named by the second, hence the suffix.
        suffix = f".{self._times_opened}" if self._times_opened > 1 else ""
        self._events = EventsWriter(str(self._directory / "events"), suffix)
        # TensorBoard forgets what other files hold from this step on.
        started = SessionLog(status=SessionLog.START)
        self._events.write_event(Event(wall_time=time.time(), step=after_step + 1, session_log=started))

    def _close(self) -> None:
        self._file.close()
        self._events.close()

    @contextlib.contextmanager
    def _named_failures(self) -> Iterator[None]:
        try:
            yield
        except ConfigError:
            raise
        except Exception as error:  # of a remote storage anything
            raise ConfigError(
                f"cannot write metrics in {self._workdir}: {first_line(error)}; repair that, then run again to resume"
            ) from error


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values, allow_nan=False) + "\n"


def read_metrics(workdir: str | PurePath) -> list[dict[str, Any]]:
    """The lines of a workdir's metrics.jsonl as dicts; a last line cut short by a crash is left out."""
    path = open_path(workdir) / FILE_NAME
    return _lines(path.read_text()) if path.exists() else []


def training_speed(lines: Sequence[dict[str, Any]]) -> float | None:
    """Images per second of a run's training, the median over its training lines; None if there are none."""
    speeds = [line["images_per_second"] for line in lines if line.get("images_per_second")]
    return statistics.median(speeds) if speeds else None


def _lines(text: str) -> list[dict[str, Any]]:
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line, parse_constant=lambda word: None))  # NaN, as earlier versions wrote
        except json.JSONDecodeError:
            continue
    return lines


def log_skipped(workdir: str | PurePath, *, step: int, rollbacks: int, images: Sequence[str], **values: float) -> None:
    """Adds a step that was not applied to a workdir's skipped.jsonl, in place of what an earlier process wrote there.

    Args:
      workdir: local or remote.
      step: the step, counted from 1.
      rollbacks: how often the run has gone back, which decides the order of images; "salt" in the file.
      images: names of the batch's images.
      values: "loss" and "gradient_norm"; those that are not finite are written as text.

    Raises:
      ConfigError: it cannot be written.
    """
    path = open_path(workdir) / SKIPPED_FILE_NAME
    finite = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
    try:
        lines = _lines(path.read_text()) if path.exists() else []
        lines = [line for line in lines if (line["salt"], line["step"]) < (rollbacks, step)]
        lines.append({"step": step, "salt": rollbacks, **finite, "images": list(images)})
        write_text(path, "".join(map(_line, lines)))
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {first_line(error)}; repair that, then run again to resume") from error
