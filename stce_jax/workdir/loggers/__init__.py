"""Where a run's numbers go beside `metrics.jsonl`, a file each, and the table that finds them by name.

A logger is a module of this package, imported when `config.loggers` names it, with

- open_log(run) -> a `Log`, for a `LoggedRun`.

One that writes files of the workdir is called between two steps. One of a service, which has a package to be installed,
may take any time and fail in any way: it is called by a thread of its own, and `kept` remembers what the service has.
Such a module's log has instead of `rewind` and `flush`

- is_new: whether the service had no run of that id, as far as it can tell;
- seconds: how long the service may take until a line that it was given is safe from the death of this process.

A new logger is one new file here and one line in the table.
"""

import functools
import importlib
import importlib.util
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from stce_jax.errors import ConfigError, shown

LOGGERS = {  # name, which is also that of a module of this package -> the service's package and extra; "": no service
    "tensorboard": "",
    "csv": "",
    "wandb": "wandb",
    "trackio": "trackio",
    "mlflow": "mlflow",
}
PATIENCE = 20.0  # seconds in which services may end their work, once a run is over


class LoggedRun(NamedTuple):
    """A run as its loggers see it.

    Attributes:
      name: for people.
      config: keys with dots, such as "optimizer.name", and their values: those that the run reads.
      notes: the directory of the workdir, local or remote, in which notes are kept of what services have.
      directory: the workdir; of a remote one, a local directory whose files are copied there.
      remote: whether it is one.
      lines: those of metrics.jsonl that the run keeps.
      last: of each split the step of the last line that can be among them: the run goes on behind it.
      id: of the service's run, which goes on if there is one; hexadecimal digits.
    """

    name: str
    config: Mapping[str, Any]
    notes: Any
    directory: Path
    remote: bool
    lines: Sequence[Mapping[str, Any]]
    last: Mapping[str, int]
    id: str = ""

    @property
    def place(self) -> str | None:
        """A directory in which a service may keep its files; None, of a remote workdir: where it keeps them anyway."""
        return None if self.remote else str(self.notes)


class Log(Protocol):
    """What takes a run's lines."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Takes a line as metrics.jsonl has it; numbers that are not finite are as they are, or None."""
        ...

    def rewind(self, lines: Sequence[Mapping[str, Any]], last: Mapping[str, int]) -> None:
        """The run goes back: takes notice of what is left, see `LoggedRun`."""
        ...

    def flush(self) -> None:
        """Has what was written on disk."""
        ...

    def close(self, summary: Mapping[str, float] | None) -> None:
        """Ends with the finished run's last evaluation; None: it was stopped and may go on."""
        ...


def logger_names(entries: Sequence[str]) -> list[str]:
    """The names in `config.loggers`: the command line makes one entry of all that commas separate."""
    return [name for entry in entries for name in entry.split(",") if name]


def check_loggers(entries: Any) -> None:
    """Raises ConfigError unless `config.loggers` are names of the table, each once."""
    texts = isinstance(entries, tuple | list) and all(isinstance(entry, str) for entry in entries)
    names = logger_names(entries) if texts else [""]
    if not set(names) <= set(LOGGERS) or len(set(names)) < len(names):
        raise ConfigError(f"config.loggers is {shown(entries)}; it must be some of {', '.join(LOGGERS)}, each once")


def check_installed(entries: Sequence[str]) -> None:
    """Raises ConfigError if the package of one of `config.loggers` is not installed. Nothing is imported."""
    for name in logger_names(entries):
        if (package := LOGGERS[name]) and not _is_installed(package):
            raise ConfigError(
                f'config.loggers has {name!r}, which is not installed: pip install "stce_jax[{name}]", or leave it out'
            )


def open_logs(entries: Sequence[str], run: LoggedRun) -> "Logs":
    """The logs of `config.loggers`, each of which fails softly."""
    from stce_jax.workdir.loggers.background import Background
    from stce_jax.workdir.loggers.guarded import Guarded
    from stce_jax.workdir.loggers.kept import Kept

    def open_log(name: str, run: LoggedRun) -> Any:
        return importlib.import_module(f"{__name__}.{name}").open_log(run)

    def make(name: str) -> Background | Guarded:
        own = functools.partial(open_log, name)
        if LOGGERS[name]:
            return Background(name, lambda: Kept(name, own, run))
        return Guarded(name, lambda: own(run))

    return Logs(make(name) for name in logger_names(entries))


class Logs:
    """Several logs as one `Log`."""

    def __init__(self, logs: Any) -> None:
        self._logs = tuple(logs)

    def write(self, line: Mapping[str, Any]) -> None:
        for log in self._logs:
            log.write(line)

    def rewind(self, lines: Sequence[Mapping[str, Any]], last: Mapping[str, int]) -> None:
        for log in self._logs:
            log.rewind(lines, last)

    def flush(self) -> None:
        for log in self._logs:
            log.flush()

    def close(self, summary: Mapping[str, float] | None) -> None:
        """Closes all of them; returns once they have ended, or after `PATIENCE` seconds."""
        for log in self._logs:
            log.close(summary)
        deadline = time.monotonic() + PATIENCE
        for log in self._logs:
            log.wait(deadline - time.monotonic())


def _is_installed(package: str) -> bool:
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None  # or it is a directory of that name
