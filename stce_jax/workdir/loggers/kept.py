"""What a service has of a run: the next process goes on in the same run of the service, with what that lacks."""

import collections
import contextlib
import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stce_jax.paths import read_json, whole_file
from stce_jax.workdir.loggers import LoggedRun
from stce_jax.workdir.metric_lines import SPLITS


class Kept:
    """A `Log` of a service, beside a note in the workdir: the service's run, and the last line that it surely has.

    When it is opened, the service gets the lines that it lacks. What it has already it gets no second time, if the run
    comes by these steps again with the same config. A line is noted once it is safe there, so after a kill the last
    ones may come twice, and none is lost.

    Args:
      name: that of the logger.
      open_log: of its module.
      run: without the id.
    """

    def __init__(self, name: str, open_log: Callable[[LoggedRun], Any], run: LoggedRun) -> None:
        self._path, self._remote = run.notes / f"{name}.json", run.remote
        self._config = hashlib.sha256(json.dumps(dict(run.config), default=str).encode()).hexdigest()
        if not run.remote:
            self._path.parent.mkdir(exist_ok=True)
        note = _read(self._path)
        self._id = note.get("id") or secrets.token_hex(8)
        self._safe = {split: note.get(split, 0) for split in SPLITS}
        if note.get("config") != self._config:  # steps that come again have other numbers
            self._safe = {split: min(step, run.last[split]) for split, step in self._safe.items()}
        self._note()  # before there is a run of that id
        self._log = open_log(run._replace(id=self._id))
        if self._log.is_new:
            self._safe = dict.fromkeys(SPLITS, 0)
        self._sent = dict(self._safe)
        self._waiting: collections.deque[tuple[float, str, int]] = collections.deque()
        for line in run.lines:
            self.write(line)

    def write(self, line: Mapping[str, Any]) -> None:
        split, step = line["split"], line["step"]
        if step > self._sent[split]:
            self._log.write({name: value for name, value in line.items() if value is not None})
            self._sent[split] = step
            self._waiting.append((time.monotonic(), split, step))
            self.flush()

    def rewind(self, lines: Sequence[Mapping[str, Any]], last: Mapping[str, int]) -> None:
        """Other numbers come for the later steps: the service gets them beside those that it has."""
        del lines
        self._waiting.clear()
        self._sent = {split: min(step, last[split]) for split, step in self._sent.items()}
        self._safe = dict(self._sent)
        self._note()

    def flush(self) -> None:
        """Notes the lines that are safe by now."""
        self._take_for_safe(time.monotonic() - self._log.seconds)

    def close(self, summary: Mapping[str, float] | None) -> None:
        self._log.close(summary)
        self._take_for_safe(time.monotonic())
        self._note()

    def _take_for_safe(self, until: float) -> None:
        before = dict(self._safe)
        while self._waiting and self._waiting[0][0] <= until:
            _, split, step = self._waiting.popleft()
            self._safe[split] = step
        if self._safe != before and not self._remote:  # objects of a storage are not written once a line
            self._note()

    def _note(self) -> None:
        note = json.dumps({"id": self._id, "config": self._config, **self._safe}) + "\n"
        with whole_file(self._path, flush=False) as file:  # once a line: only a machine without power may lose it
            file.write(note.encode())


def _read(path: Any) -> dict[str, Any]:
    """A note; {} if there is none, or it cannot be one."""
    with contextlib.suppress(OSError, ValueError):
        note = read_json(path)
        steps = [note.get(split) for split in SPLITS] if isinstance(note, dict) else [None]
        if all(type(step) is int and step >= 0 for step in steps) and re.fullmatch("[0-9a-f]{16}", str(note.get("id"))):
            return note
    return {}
