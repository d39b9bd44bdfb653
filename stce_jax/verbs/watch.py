"""`stce watch`: a page with the curves of runs, written again and again while they train."""

import datetime
import itertools
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from etils import epath

from stce_jax.analysis.pages import running
from stce_jax.errors import CheckpointError, ConfigError, check_range
from stce_jax.paths import is_remote, named_failures, open_path, write_text
from stce_jax.platform import terminal
from stce_jax.verbs.compare import check_same_task, is_finished, short_names
from stce_jax.workdir import config as configuration
from stce_jax.workdir import layout
from stce_jax.workdir.metric_lines import FILE_NAME, read_metrics, training_speed
from stce_jax.workdir.score import score

EVERY = 30.0  # seconds
POLL = 0.2  # seconds between two looks for a signal


class Seen(NamedTuple):
    """What was last read of a run.

    Attributes:
      config, lines: see `read_config` and `read_metrics`.
      last: when its last line was written, in words; "" if that is not known.
      gone: whether it could not be read again since.
    """

    config: Any
    lines: Sequence[dict[str, Any]]
    last: str
    gone: bool = False


def watch(
    workdirs: Iterable[epath.PathLike],
    output: epath.PathLike,
    *,
    every: float = EVERY,
    once: bool = False,
    stopped: Callable[[], bool] = lambda: False,
    report: Callable[[str], None] | None = None,
) -> int:
    """Writes a page with the curves and figures of runs, finished or not, until it is stopped.

    Runs whose configs differ in their seed alone are one group: its mean, and the interval over seeds. A run that
    cannot be read any more, because somebody moved it or its disk fails, keeps what was last read of it, and is looked
    for again.

    Args:
      workdirs: of the runs, at least one.
      output: the page; it reloads itself while it is written again.
      every: seconds from one time to the next, 1 to 86,400.
      once: write it once, and as one that does not reload itself.
      stopped: whether to end; asked several times a second. The page is written a last time then.
      report: called with a line once the page is there.

    Returns:
      How often the page was written.

    Raises:
      ConfigError: a workdir is none of a run at the beginning, runs have different tasks, or the page cannot be
        written.
      CheckpointError: a workdir without config.json has no whole checkpoint.
    """
    check_range("every", every, 1, 86_400)
    paths = [os.fspath(workdir) for workdir in workdirs]
    if len(set(paths)) < len(paths):
        raise ConfigError("a run is named twice; name each once")
    names = short_names(paths)
    seen = [_read(path) for path in paths]
    check_same_task([run.config for run in seen], paths)
    times = 0
    while True:
        ends = once or stopped()
        _write(output, _groups(names, seen), None if ends else every)
        times += 1
        if times == 1 and report:
            report(f"{output}: {len(paths)} run{'s' * (len(paths) != 1)}")
        if ends:
            return times
        until = time.monotonic() + every
        while not stopped() and (left := until - time.monotonic()) > 0:
            time.sleep(min(POLL, left))
        seen = [_read_again(path, before) for path, before in zip(paths, seen, strict=True)]


def _read(path: str) -> Seen:
    try:
        config = layout.read_config(path)
    except ConfigError as error:
        raise error if path in str(error) else ConfigError(f"{path}: {error}") from error
    lines, last = read_metrics(path), ""
    if lines and not is_remote(path):
        try:
            moment = os.stat(open_path(path) / FILE_NAME).st_mtime
            last = f"{datetime.datetime.fromtimestamp(moment):%Y-%m-%d %H:%M:%S}"
        except OSError:  # gone meanwhile
            pass
    return Seen(config, lines, last)


def _read_again(path: str, before: Seen) -> Seen:
    """A run as it is now, or as it was before."""
    try:
        return _read(path)
    except (ConfigError, CheckpointError, OSError) as error:
        if not before.gone:
            terminal.warn(f"{error}; the page keeps what was read of it before")
        return before._replace(gone=True)


def _groups(names: Sequence[str], seen: Sequence[Seen]) -> list[running.Group]:
    """Runs whose configs differ in their seed alone, together; a seed that comes twice begins another group."""
    groups: list[list[int]] = []
    for number, run in enumerate(seen):
        for group in groups:
            seeds = {seen[other].config.seed for other in group}
            if run.config.seed not in seeds and _differ_in_seed_alone(seen[group[0]].config, run.config):
                group.append(number)
                break
        else:
            groups.append([number])
    return [
        running.Group(
            _label([names[number] for number in group]),
            [_row(names[number], seen[number]) for number in group],
            [seen[number].lines for number in group],
        )
        for group in groups
    ]


def _differ_in_seed_alone(first: Any, second: Any) -> bool:
    return all(change.startswith("seed: ") for change in configuration.differences(first, second))


def _label(names: Sequence[str]) -> str:
    """What the names of a group's runs have in common, without the seed; or the first and how many more."""
    if len(names) == 1:
        return names[0]
    same = itertools.takewhile(lambda signs: len(set(signs)) == 1, zip(*names, strict=False))
    common = re.sub(r"[-_./ ]*(seed|s)?[-_=]?\d*$", "", "".join(signs[0] for signs in same))
    return common or f"{names[0]} and {len(names) - 1} more"


def _row(name: str, run: Seen) -> dict[str, Any]:
    evaluations = [line for line in run.lines if line["split"] == "eval"]
    last = evaluations[-1] if evaluations else {}
    scores = [found for line in evaluations if (found := score(line)) is not None]
    state = "no evaluation yet"
    if evaluations:
        state = "finished" if is_finished(run.lines, run.config) else "in progress"
    return {
        "run": name,
        "seed": run.config.seed,
        "state": "not readable any more" if run.gone else state,  # why, with its path, is for the terminal
        "epoch": max((line["epoch"] for line in run.lines), default=0.0),
        "epochs": run.config.epochs,
        "score": score(last),
        "best_score": max(scores, default=None),
        "loss": last.get("loss"),
        "images_per_second": training_speed(run.lines),
        "last": run.last,
    }


def _write(output: epath.PathLike, groups: Sequence[running.Group], every: float | None) -> None:
    now = datetime.datetime.now().astimezone()
    text = running.write(groups, written=f"{now:%Y-%m-%d %H:%M:%S %Z}", moment=now.timestamp(), every=every)
    with named_failures(f"write {output}", "give another --output"):
        write_text(open_path(output), text)
