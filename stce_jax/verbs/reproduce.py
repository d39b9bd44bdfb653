"""`stce reproduce`: trains the rows of the paper's tables, and writes what came of them beside what the paper prints.

A cell, one row with one seed, is trained and evaluated by `stce train` and `stce evaluate`, each a process of its own:
a crash of one leaves the others alone, and the report's commands are those that were run. Finished cells are skipped,
cells that another machine works on are left to it.
"""

import contextlib
import functools
import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

from stce_jax.analysis.files import IN_RUN, SCORES
from stce_jax.data.locks import locked
from stce_jax.errors import ConfigError, PreemptedError, StceError, check_whole
from stce_jax.paths import absolute, first_line, is_remote, named_failures, read_json, remedy, write_text
from stce_jax.platform import terminal
from stce_jax.processes import clusters
from stce_jax.processes.stopping import StopSignals, stopped
from stce_jax.reproduce.cells import CELL_FILE, TABLES, TRAINED, Cell, Row, cell_of, cells_of, load_rows
from stce_jax.reproduce.costs import read_speed, speed_file
from stce_jax.reproduce.report import write_report
from stce_jax.reproduce.subprocesses import describe_place, run_command
from stce_jax.training import assemble as runs
from stce_jax.workdir import migration
from stce_jax.workdir.claim import Claim, InUseError

SWEEP_FILE = "sweep.json"
LOG_FILE = "log.txt"
MOST_SEEDS = 1000
PATIENCE = 60.0  # seconds to wait for a run whose sweep is dead
ROUNDS = 7  # turns of each model when a table's speeds are measured; fewer than 6 have no interval


class CellsFailedError(StceError):
    """Some cells could not be trained or evaluated."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def reproduce(
    table: str,
    workdir: epath.PathLike,
    *,
    scale: str = "paper",
    seeds: Sequence[int] = (0, 1, 2),
    data_dir: str = "",
    only: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> Path:
    """Trains what a table needs and is not there yet, and writes report.md, report.html and figures into the workdir.

    The runs are processes of their own that need the devices' memory: a process that calls this should hold none of it.

    Args:
      table: "table1", "table6", "table7", "table8", "readings", or "all" of them; or a study, "reductions" or "bodies".
      workdir: local directory, see `stce_jax.reproduce.cells`; several machines may work on one that they share.
      scale: "paper", "small" or "smoke", see `configs/tables/scales.py`.
      seeds: of the runs.
      data_dir: where the images are, as everywhere.
      only: names of runs, to leave the other rows out; () for all.
      overrides: words such as "--config.image_size=128", for every row.

    Returns:
      Path of report.md.

    Raises:
      ConfigError: an unknown table, scale or run, or a workdir that holds another sweep.
      DataError: the images are not there.
      CellsFailedError: some cells failed, which is in the report, too; all others are done.
      PreemptedError: stopped by a signal; what was trained is saved.
    """
    _check_alone(workdir)
    directory = absolute(workdir)
    tables = TABLES if table == "all" else (table,)
    rows = _chosen([row for name in tables for row in load_rows(name, scale, overrides)], only)
    _check_rows(rows, seeds, overrides)
    cells = cells_of(rows, seeds, directory)
    # An error in the images is reported once, not for every cell.
    dataset = runs.open_dataset(rows[0].config(), data_dir) if cells else None
    words = ["stce", "reproduce", table, f"--scale={scale}", f"--seeds={','.join(map(str, seeds))}"]
    words += [f"--data_dir={data_dir}"] * bool(data_dir) + [f"--runs={','.join(only)}"] * bool(only)
    words += [f"--workdir={workdir}", *overrides]
    with StopSignals() as stop, named_failures(f"use workdir {directory}", "give another --workdir"):
        _open_sweep(directory, {"scale": scale, "overrides": list(overrides)}, dataset, stop)
        failures, left = _run_cells(cells, data_dir, stop)
        with _one_at_a_time(directory, stop):
            for name in tables:
                if name in TRAINED:
                    _measure_speed(name, load_rows(name, scale, overrides), seeds, directory, stop)
            speed = read_speed(directory, tables)
            report = write_report(directory, rows, seeds, command=shlex.join(words), dataset=dataset, speed=speed)
    elsewhere = sum(not cell.finished() for cell in left)
    if elsewhere:
        terminal.say(f"{elsewhere} cells are another job's; run again once it is done, for the whole report")
    if failures:
        names = ", ".join(cell.directory.name for cell, _ in failures)
        code = failures[0][1]["exit_code"]
        raise CellsFailedError(f"{len(failures)} of {len(cells)} cells failed ({names}); {report} says why", code)
    return report


def _check_alone(workdir: epath.PathLike) -> None:
    if clusters.detect():
        raise ConfigError(
            "reproduce trains each run in one process; start it once a machine, all with the same --workdir, and "
            "without the variables that make several processes one run"
        )
    if is_remote(workdir):
        raise ConfigError(f"--workdir={workdir}: reproduce needs a local directory, or one that machines share")


def _chosen(rows: Sequence[Row], only: Sequence[str]) -> list[Row]:
    known = dict.fromkeys(row.run for row in rows)
    for name in only:
        if name not in known:
            raise ConfigError(f"there is no run {name!r}; there are {', '.join(known)}")
    return [row for row in rows if not only or row.run in only]


def _check_rows(rows: Sequence[Row], seeds: Sequence[int], overrides: Sequence[str]) -> None:
    """Refuses invalid overrides, and those that would undo what a row's name stands for."""
    check_whole("the number of --seeds", len(seeds), 1, MOST_SEEDS)
    for row in rows:
        for word in migration.new_words(overrides, row.config().model):
            key = migration.flag_key(word)
            if key in ("seed", "data_dir"):
                raise ConfigError(f"{word}: give --{'seeds' if key == 'seed' else key} instead")
            if key in row.overrides:
                raise ConfigError(f"{word} would undo what makes {row.run!r} that row; leave it, or --runs without it")
        for seed in seeds:
            runs.build_model(row.config(f"--config.seed={seed}"), 1)


def _one_at_a_time(workdir: Path, stop: StopSignals) -> contextlib.AbstractContextManager[None]:
    """Lets one job at a time, of all that share the workdir, run the body."""
    return locked(workdir / "lock", check=functools.partial(_check_stop, stop))


def _check_stop(stop: StopSignals) -> None:
    if stop.requested:
        raise stopped(stop.requested, "between two runs")


def _open_sweep(workdir: Path, own: dict[str, Any], dataset: Any, stop: StopSignals) -> None:
    """Makes a workdir that of a sweep of this scale, these overrides and images, or refuses it."""
    path = workdir / SWEEP_FILE
    workdir.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(workdir, stop):
        try:
            found = read_json(path) if path.exists() else own | {"images": None}
            known, images = {name: found[name] for name in own}, found["images"]
            described = _described(known)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is damaged; give another --workdir") from error
        if known != own:
            raise ConfigError(
                f"{workdir} holds a sweep of {described}, not of {_described(own)}; give another --workdir"
            )
        if images and dataset and images != dataset.fingerprint:
            raise ConfigError(
                f"{workdir} holds a sweep on other images; give the --data_dir it began with, or another --workdir"
            )
        if not path.exists() or (dataset and not images):
            write_text(path, json.dumps(own | {"images": dataset and dataset.fingerprint}) + "\n")


def _described(sweep: dict[str, Any]) -> str:
    return " ".join([f"scale {sweep['scale']}", *sweep["overrides"]])


def _run_cells(
    cells: Sequence[Cell], data_dir: str, stop: StopSignals
) -> tuple[list[tuple[Cell, dict[str, Any]]], list[Cell]]:
    """Processes cells in turn; returns ([(cell, record) of those that failed], [those that are another job's])."""
    failures, left = [], []
    place = "" if all(cell.finished() for cell in cells) else describe_place()
    for number, cell in enumerate(cells, start=1):
        _check_stop(stop)
        if cell.finished():
            continue
        name = f"{number}/{len(cells)}  {cell.directory.name}"
        terminal.say(f"{name} ...")
        try:
            with Claim(cell.claim):
                if cell.finished():  # by another job, just now
                    continue
                _wait_until_free(cell.directory)
                record = _run_cell(cell, data_dir, place, stop)
        except InUseError as error:
            left.append(cell)
            terminal.say(f"{name}: left out: {error}")
            continue
        terminal.say(f"{name}: {record['error'] or _accuracy(cell)}  ({record['seconds']:.0f} s)")
        if record["exit_code"]:
            failures.append((cell, record))
    return failures, left


def _wait_until_free(directory: Path) -> None:
    """Waits for a run whose sweep is dead, and which is still saving its state."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with Claim(directory):
                return
        except InUseError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _accuracy(cell: Cell) -> str:
    evaluation = read_json(cell.directory / IN_RUN / SCORES)
    return f"top-1 {100 * evaluation['top1']:.2f}%"


def _run_cell(cell: Cell, data_dir: str, place: str, stop: StopSignals) -> dict[str, Any]:
    """Trains and evaluates a cell; returns the record of it, which is also written.

    Raises:
      PreemptedError: a signal came; the run has saved what it had.
    """
    commands = [["stce", *words] for words in cell.commands(data_dir)]
    earlier = cell.record()  # of starts that were stopped
    places = dict.fromkeys([*filter(None, earlier.get("place", "").split("; ")), place])
    record: dict[str, Any] = {"commands": [shlex.join(words) for words in commands], "place": "; ".join(places)}
    record |= {"seconds": earlier.get("seconds", 0.0), "exit_code": PreemptedError.exit_code, "error": "running"}
    try:
        _write_record(cell, record)
        for words in commands:
            start = time.monotonic()
            code, error = run_command(words, cell.directory / LOG_FILE, stop)
            record |= {"exit_code": code, "error": error, "seconds": record["seconds"] + time.monotonic() - start}
            _write_record(cell, record)
            if stop.requested:
                raise stopped(stop.requested, f"in {cell.directory.name}, whose state is saved")
            if code:
                break
    except OSError as error:
        advice = remedy(error, "make it writable")
        record |= {"exit_code": 2, "error": f"cannot write to {cell.directory}: {first_line(error)}; {advice}"}
    return record


def _write_record(cell: Cell, record: dict[str, Any]) -> None:
    write_text(cell.directory / CELL_FILE, json.dumps(record, indent=1) + "\n")


def _measure_speed(name: str, rows: Sequence[Row], seeds: Sequence[int], workdir: Path, stop: StopSignals) -> None:
    """Has `stce benchmark` time the models of a table in turn, unless that is done; keeps its rows by run."""
    cells = {row.run: [cell for seed in seeds if (cell := cell_of(row, seed, workdir)).finished()] for row in rows}
    finished = [row for row in rows if cells[row.run]]
    finished.sort(key=lambda row: "images_per_second" not in row.paper)  # ratios are to the first
    path = speed_file(workdir, name)
    models: dict[str, list[str]] = {}  # runs that differ in their length alone have one
    for row in finished:
        models.setdefault(row.config().model.to_json(), []).append(row.run)
    known = {measured["model"] for measured in read_speed(workdir, [name]).get(name, [])}
    if known >= {row.run for row in finished}:
        return
    terminal.say(f"{name}: timing {len(models)} models in turn ...")
    path.parent.mkdir(exist_ok=True)
    directories = {str(cells[alike[0]][0].directory): alike for alike in models.values()}
    measured = path.with_suffix(".measured.json")
    words = ["stce", "benchmark", *directories, f"--rounds={ROUNDS}"]
    words += [f"--accumulate={finished[0].config().accumulate}", f"--json={measured}"]
    code, error = run_command(words, path.with_suffix(".log"), stop)
    if stop.requested:
        raise stopped(stop.requested, "while speeds were measured; all runs are saved")
    if code:
        terminal.say(f"{name}: no speeds: {error}")
        return
    timed = [row | {"model": run} for row in read_json(measured) for run in directories[row["model"]]]
    write_text(path, json.dumps(timed, indent=1) + "\n")
