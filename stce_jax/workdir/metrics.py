"""What a run measures: `metrics.jsonl` (one object per line), what `loggers` make of it, and `skipped.jsonl`."""

import contextlib
import errno
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any, Self

from stce_jax.errors import ConfigError
from stce_jax.paths import first_line, is_remote, open_path, write_bytes
from stce_jax.platform import terminal
from stce_jax.workdir.claim import LostClaimError
from stce_jax.workdir.loggers import LoggedRun, open_logs
from stce_jax.workdir.metric_lines import FILE_NAME, Line, describe, parse, read_bytes, sort_out

LOGGERS = "loggers"  # the directory of what services have
DAMAGED_FILE_NAME = "metrics.jsonl.damaged"
SKIPPED_FILE_NAME = "skipped.jsonl"


class MetricsLog:
    """A workdir's metrics.jsonl, and the loggers that get the same lines; a context manager.

    In a local workdir each line is on disk once it is written. A remote workdir's files can only be written whole:
    `flush` copies them there; lines since the last flush are those that a resumed run writes again.

    Args:
      workdir: the directory; must exist, if it is local.
      loggers: names of `loggers.LOGGERS`. What fails there ends nothing.
      config: of the run, for loggers that keep it: keys with dots, and their values.
      after_step: the step that training resumes from. Lines of later steps, left by a run that died after writing
        them, are removed, so that each (split, step) occurs once.
      evaluated: whether that step's evaluation is done; if not, its line is removed, too.
      writes: False makes every method do nothing: of several processes only one writes.
    """

    def __init__(
        self,
        workdir: str | PurePath,
        loggers: Sequence[str] = ("tensorboard",),
        config: Mapping[str, Any] | None = None,
        *,
        after_step: int,
        evaluated: bool = True,
        writes: bool = True,
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
            lines, last = self._open(read_bytes(workdir), after_step, evaluated)
        run = LoggedRun(
            name=self._workdir.name,
            config=config or {},
            notes=self._workdir / LOGGERS,
            directory=self._directory,
            remote=is_remote(self._workdir),
            lines=lines,
            last=last,
        )
        self._summary: dict[str, float] | None = None
        self._logs = open_logs(loggers, run)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writes:
            with self._closing:
                lost = isinstance(error, LostClaimError)  # the files, and services' runs, are another job's by now
                try:
                    if not lost:
                        self.flush()
                except ConfigError:
                    if error is None:  # else there is something more important to say
                        raise
                finally:
                    self._file.close()
                    if not lost:
                        self._logs.close(self._summary)

    def write(self, *, step: int, epoch: float, split: str, **values: float) -> None:
        """Writes one line; `values` are loss, top1 and top5 or map (fractions), learning_rate, images_per_second.

        Values that are not finite become null, for JSON has no word for them; loggers get them as they are.

        Raises:
          ConfigError: it cannot be written.
        """
        if not self._writes:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self._named_failures():
            line = _line({"step": step, "epoch": epoch, "split": split, **finite}).encode()
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._logs.write({"step": step, "epoch": epoch, "split": split, **values})

    def finish(self, summary: dict[str, float]) -> None:
        """Says that the run is done, with its last evaluation."""
        self._summary = summary

    def flush(self) -> None:
        """Returns once all is on disk, or in the remote workdir; to be called before a checkpoint is saved."""
        if not self._writes:
            return
        self._logs.flush()
        with self._named_failures():
            os.fsync(self._file.fileno())
            if is_remote(self._workdir):
                for path in self._directory.iterdir():
                    write_bytes(self._workdir / path.name, path.read_bytes())

    def rewind(self, step: int, *, evaluated: bool = True) -> None:
        """Drops the lines of later steps: the run goes back to `step`; for `evaluated` see above."""
        if not self._writes:
            return
        with self._named_failures():
            self._file.close()
            lines, last = self._open(read_bytes(self._directory), step, evaluated)
        self._logs.rewind(lines, last)
        self.flush()

    def _open(self, data: bytes, after_step: int, evaluated: bool) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """Keeps what is of the run by then: (its lines, of each split the last step that can be among them)."""
        path = self._directory / FILE_NAME
        last = {"train": after_step, "eval": after_step if evaluated else max(0, after_step - 1)}
        whole, damaged = sort_out(data)
        if damaged:
            self._set_aside([line.raw for line in damaged])
            terminal.warn(f"{self._workdir / FILE_NAME}: {describe(damaged)} moved to {DAMAGED_FILE_NAME}")
        kept = [line for line in whole if line.values["step"] <= last[line.values["split"]]]
        write_bytes(path, b"".join(b"%s\n" % _plain(line) for line in kept))
        self._file = path.open("ab", buffering=0)
        return [line.values for line in kept], last

    def _set_aside(self, lines: Sequence[bytes]) -> None:
        """Adds damaged lines to a file of their own: they may still tell somebody something."""
        before = read_bytes(self._workdir, DAMAGED_FILE_NAME)
        write_bytes(self._workdir / DAMAGED_FILE_NAME, before + b"".join(b"%s\n" % line for line in lines))

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


def _plain(line: Line) -> bytes:
    """A whole line as it stands, unless it holds what is no JSON."""
    return _line(line.values).encode().rstrip() if b"N" in line.raw or b"I" in line.raw else line.raw.rstrip()


def _is_before(values: dict[str, Any], rollbacks: int, step: int) -> bool:
    """Whether a line of skipped.jsonl is of an earlier step. A damaged one stays: nobody but people reads this file."""
    salt, skipped = values.get("salt"), values.get("step")
    return type(salt) is not int or type(skipped) is not int or (salt, skipped) < (rollbacks, step)


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
        lines = list(parse(read_bytes(workdir, SKIPPED_FILE_NAME)))
        kept = [line.raw for line in lines if _is_before(line.values, rollbacks, step)]
        own = _line({"step": step, "salt": rollbacks, **finite, "images": list(images)})
        write_bytes(path, b"".join(b"%s\n" % line for line in kept) + own.encode())
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {first_line(error)}; repair that, then run again to resume") from error
