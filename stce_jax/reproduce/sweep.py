"""What `stce reproduce` is asked for, and the directory where it is done: one sweep a workdir, on one set of images."""

import contextlib
import dataclasses
import difflib
import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

from stce_jax.data.locks import locked
from stce_jax.errors import ConfigError, check_whole, shown
from stce_jax.paths import absolute, is_remote, read_json, write_text
from stce_jax.processes import clusters
from stce_jax.processes.stopping import StopSignals, stopped
from stce_jax.reproduce.cells import TABLES, Cell, Row, cells_of, load_rows, split_name
from stce_jax.training import assemble as runs
from stce_jax.workdir import migration

SWEEP_FILE = "sweep.json"
MOST_SEEDS = 1000


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What is asked for: each field is an argument of `stce reproduce`, see `stce_jax.verbs.reproduce.reproduce`."""

    table: str
    workdir: epath.PathLike
    scale: str = "paper"
    seeds: tuple[int, ...] = (0, 1, 2)
    data_dir: str = ""
    only: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables: "all" are several."""
        return TABLES if self.table == "all" else (self.table,)

    @property
    def directory(self) -> Path:
        """The workdir as an absolute path."""
        return absolute(self.workdir)

    @property
    def identity(self) -> dict[str, Any]:
        """What all that is done in one workdir has in common, besides the images."""
        return {"scale": self.scale, "overrides": list(self.overrides)}

    def rows(self) -> list[Row]:
        """The rows of all tables that were chosen, in order; raises ConfigError for what there is not."""
        rows = [row for name in self.tables for row in load_rows(name, self.scale, self.overrides)]
        known = dict.fromkeys(row.run for row in rows)
        for name in self.only:
            if name not in known:
                raise ConfigError(f"there is no run {name!r}; there are {', '.join(known)}")
        return [row for row in rows if not self.only or row.run in self.only]

    def cells(self, rows: Sequence[Row]) -> list[Cell]:
        """The cells of rows in the order in which they are trained."""
        return cells_of(rows, self.seeds, self.directory)

    def words(self) -> list[str]:
        """The command line: ["stce", "reproduce", ...]."""
        words = ["stce", "reproduce", self.table, f"--scale={self.scale}"]
        words += [f"--seeds={','.join(map(str, self.seeds))}"]
        words += [f"--data_dir={self.data_dir}"] * bool(self.data_dir)
        words += [f"--runs={','.join(self.only)}"] * bool(self.only)
        return [*words, f"--workdir={self.workdir}", *self.overrides]

    def from_anywhere(self) -> "Sweep":
        """The same with absolute paths, for commands that are run in another directory."""
        local = self.data_dir and not is_remote(self.data_dir)
        data_dir = os.fspath(absolute(self.data_dir)) if local else self.data_dir
        return dataclasses.replace(self, workdir=os.fspath(self.directory), data_dir=data_dir)


def check_alone(workdir: epath.PathLike) -> None:
    """Refuses a process that is one of several of a run, and a remote workdir."""
    if clusters.detect():
        raise ConfigError(
            "reproduce trains each run in one process; start it once a machine, all with the same --workdir, and "
            "without the variables that make several processes one run"
        )
    check_local(workdir)


def check_local(workdir: epath.PathLike) -> None:
    """Refuses a remote workdir."""
    if is_remote(workdir):
        raise ConfigError(f"--workdir={workdir}: reproduce needs a local directory, or one that machines share")


def check_rows(rows: Sequence[Row], seeds: Sequence[int], overrides: Sequence[str]) -> None:
    """Refuses invalid overrides, and those that would undo what a row's name stands for."""
    check_whole("the number of --seeds", len(seeds), 1, MOST_SEEDS)
    check_overrides(rows, overrides)
    for number, row in enumerate(rows):
        for seed in seeds[: 1 if number else None]:  # what a seed may be is the same for all rows
            runs.build_model(row.config(f"--config.seed={seed}"), 1)


def check_overrides(rows: Sequence[Row], overrides: Sequence[str]) -> None:
    """Refuses overrides of what a row's name stands for."""
    for row in rows if overrides else ():
        for word in migration.new_words(overrides, row.config().model):
            key = migration.flag_key(word)
            if key in ("seed", "data_dir"):
                raise ConfigError(f"{word}: give --{'seeds' if key == 'seed' else key} instead")
            if key == "patience":
                raise ConfigError(f"{word}: the runs of a sweep are compared after the same epochs; leave it out")
            if key == "task":
                raise ConfigError(f"{word}: the tables are of images with one label each; leave it out")
            if key in row.overrides:
                raise ConfigError(f"{word} would undo what makes {row.run!r} that row; leave it, or --runs without it")


def find_cell(cells: Sequence[Cell], name: str) -> Cell:
    """The cell of a name such as "stce_seed0"; raises ConfigError, with the nearest names, if there is none."""
    by_name = {cell.directory.name: cell for cell in cells}
    if name in by_name:
        return by_name[name]
    named = split_name(name)
    near = difflib.get_close_matches(name, by_name, 3)
    if named and any(cell.row.run == named[0] for cell in cells):
        seeds = dict.fromkeys(str(cell.seed) for cell in cells)
        advice = f"--seeds={','.join(seeds)} has no such seed"
    else:
        advice = f"did you mean {' or '.join(near)}?" if near else "--list prints those that there are"
    raise ConfigError(f"there is no cell {shown(name)}; {advice}")


def one_at_a_time(workdir: Path, stop: StopSignals) -> contextlib.AbstractContextManager[None]:
    """Lets one job at a time, of all that share the workdir, run the body."""
    return locked(workdir / "lock", check=functools.partial(check_stop, stop))


def check_stop(stop: StopSignals) -> None:
    """Raises PreemptedError once a signal has come."""
    if stop.requested:
        raise stopped(stop.requested, "between two runs")


def open_sweep(sweep: Sweep, dataset: Any, stop: StopSignals) -> None:
    """Makes the workdir that of this sweep and these images (None: it needs none), or refuses it, see `check_sweep`."""
    directory = sweep.directory
    path = directory / SWEEP_FILE
    directory.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(directory, stop):
        images = check_sweep(sweep, dataset)
        if not path.exists() or (dataset and not images):
            write_text(path, json.dumps(sweep.identity | {"images": dataset and dataset.fingerprint}) + "\n")


def check_sweep(sweep: Sweep, dataset: Any = None) -> str | None:
    """The fingerprint of the images of a workdir's sweep, None if it has none yet, or there is no sweep.

    Raises:
      ConfigError: it is a sweep of another scale, with other overrides, or on other images than those of `dataset`.
    """
    directory, own = sweep.directory, sweep.identity
    path = directory / SWEEP_FILE
    try:
        found = read_json(path) if path.exists() else own | {"images": None}
        known, images = {name: found[name] for name in own}, found["images"]
        described = _described(known)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged; give another --workdir") from error
    if known != own:
        raise ConfigError(f"{directory} holds a sweep of {described}, not of {_described(own)}; give another --workdir")
    if images and dataset and images != dataset.fingerprint:
        raise ConfigError(
            f"{directory} holds a sweep on other images; give the --data_dir it began with, or another --workdir"
        )
    return images


def _described(sweep: dict[str, Any]) -> str:
    return " ".join([f"scale {sweep['scale']}", *sweep["overrides"]])
