"""Trackio: on a Space or server of TRACKIO_SPACE_ID or TRACKIO_SERVER_URL, else in the directory of TRACKIO_DIR.

By default that is Trackio's own in the user's cache, which its dashboard shows: `trackio show`. The project is "stce".
"""

from collections.abc import Mapping
from typing import Any

from stce_jax.workdir.loggers import LoggedRun

PROJECT = "stce"


def open_log(run: LoggedRun) -> "Trackio":
    """The log of a run; see `loggers`."""
    return Trackio(run)


class Trackio:
    """The log of a run; see `loggers`. Trackio knows a run by its name, which therefore ends with a number."""

    is_new = False  # it does not tell
    seconds = 3.0  # it writes every half a second

    def __init__(self, run: LoggedRun) -> None:
        import trackio
        import trackio.run
        import trackio.utils

        for module in (trackio, trackio.run, trackio.utils):
            module.print = _say_nothing  # type: ignore[attr-defined]  # it has no option to be quiet
        name, config = f"{run.name}-{run.id}", {key: _plain(value) for key, value in run.config.items()}
        self._run = trackio.init(project=PROJECT, name=name, config=config, resume="allow", embed=False)
        self._step = 0

    def write(self, line: Mapping[str, Any]) -> None:
        split, self._step = line["split"], line["step"]
        values = {f"{split}/{name}": value for name, value in line.items() if name not in ("step", "epoch", "split")}
        self._run.log({"epoch": line["epoch"], **values}, step=self._step)

    def close(self, summary: Mapping[str, float] | None) -> None:
        if summary:
            self._run.log({f"final/{name}": value for name, value in summary.items()}, step=self._step)
        self._run.finish()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _say_nothing(*words: object, **options: object) -> None:
    """Takes what would be printed between the lines of the run."""
