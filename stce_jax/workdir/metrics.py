"""What a run measures: `metrics.jsonl` (one object a line) and TensorBoard events."""

import contextlib
import errno
import json
import math
import os
import statistics
import tempfile
import time
from pathlib import Path

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

    In a local workdir each line is there once it is written. To a remote one, whose files can only be written whole,
    they are copied by `flush`; lines since the last are those that a run writes again as it goes on from a checkpoint.

    Args:
      workdir: the directory; must exist, if it is local.
      after_step: the step that training goes on from. Lines of later steps, left by a run that died after writing
        them, are removed, so that each (split, step) stands once.
      evaluated: whether that step's evaluation is done; if not, its line is removed, too.
      writes: False does nothing at all: in several processes only one writes.
    """

    def __init__(self, workdir, *, after_step, evaluated=True, writes=True):
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
            self._opened = 0  # times
            self._open(read_metrics(workdir), after_step, evaluated)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
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

    def write(self, *, step, epoch, split, **values):
        """Writes one line; `values` are floats: loss, top1, top5 (fractions), learning_rate, images_per_second.

        What is not finite becomes null, for JSON has no word for it; TensorBoard gets it as it is.

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

    def flush(self):
        """Returns once all is on disk, or in the remote workdir; to be called before a checkpoint is saved."""
        if not self._writes:
            return
        with self._named_failures():
            self._events.flush()
            os.fsync(self._file.fileno())
            if is_remote(self._workdir):
                for path in self._directory.iterdir():
                    write_bytes(self._workdir / path.name, path.read_bytes())

    def rewind(self, step, *, evaluated=True):
        """Drops what was written of later steps: the run goes back to `step`; for `evaluated` see above."""
        if not self._writes:
            return
        with self._named_failures():
            self._close()
            self._open(read_metrics(self._directory), step, evaluated)
        self.flush()

    def _open(self, lines, after_step, evaluated):
        path = self._directory / FILE_NAME
        last = after_step if evaluated else after_step - 1
        kept = [line for line in lines if line["step"] <= (last if line["split"] == "eval" else after_step)]
        write_text(path, "".join(map(_line, kept)))
        self._file = path.open("ab", buffering=0)
        self._opened += 1
        # Not tensorboardX's SummaryWriter: that queues events for a thread, and its flush leaves them there. Files are
        # named by the second, hence the suffix.
        self._events = EventsWriter(str(self._directory / "events"), f".{self._opened}" if self._opened > 1 else "")
        # TensorBoard forgets what other files hold from this step on.
        started = SessionLog(status=SessionLog.START)
        self._events.write_event(Event(wall_time=time.time(), step=after_step + 1, session_log=started))

    def _close(self):
        self._file.close()
        self._events.close()

    @contextlib.contextmanager
    def _named_failures(self):
        try:
            yield
        except ConfigError:
            raise
        except Exception as error:  # of a remote storage anything
            raise ConfigError(
                f"cannot write metrics in {self._workdir}: {first_line(error)}; once that is mended, run again to go on"
            ) from error


def _line(values):
    return json.dumps(values, allow_nan=False) + "\n"


def read_metrics(workdir):
    """The lines of a workdir's metrics.jsonl as dicts; a last line cut short by a crash is left out."""
    path = open_path(workdir) / FILE_NAME
    return _lines(path.read_text()) if path.exists() else []


def training_speed(lines):
    """Images a second that a run was trained with, the median over its lines of training; None if there are none."""
    speeds = [line["images_per_second"] for line in lines if line.get("images_per_second")]
    return statistics.median(speeds) if speeds else None


def _lines(text):
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line, parse_constant=lambda word: None))  # NaN, as earlier versions wrote
        except json.JSONDecodeError:
            continue
    return lines


def log_skipped(workdir, *, step, salt, images, **values):
    """Adds a step that was not applied to a workdir's skipped.jsonl, in place of what an earlier process wrote there.

    Args:
      workdir: local or remote.
      step: the step, counted from 1.
      salt: of the order of images, 0, and 1 more each time that the run goes back.
      images: names of the batch's images.
      values: floats, "loss" and "gradient_norm"; those that are not finite are written as text.

    Raises:
      ConfigError: it cannot be written.
    """
    path = open_path(workdir) / SKIPPED_FILE_NAME
    values = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
    try:
        lines = _lines(path.read_text()) if path.exists() else []
        lines = [line for line in lines if (line["salt"], line["step"]) < (salt, step)]
        write_text(path, "".join(map(_line, [*lines, {"step": step, "salt": salt, **values, "images": images}])))
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {first_line(error)}; once that is mended, run again to go on"
        ) from error
