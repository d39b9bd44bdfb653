"""`stce reproduce`: trains the rows of the paper's tables, and writes what came of them beside what the paper prints.

A cell, one row with one seed, is trained and evaluated by `stce train` and `stce evaluate`, each a process of its own:
a crash of one leaves the others alone, and the report's commands are those that were run. Finished cells are skipped,
cells that another machine works on are left to it. Cells can also be listed, run one by one, and handed to a scheduler.
"""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

from stce_jax.errors import ConfigError, StceError
from stce_jax.paths import named_failures, read_json, write_text
from stce_jax.platform import terminal
from stce_jax.processes.stopping import StopSignals, stopped
from stce_jax.reproduce import jobs, recipe_protocol
from stce_jax.reproduce.cells import TRAINED, Row, cell_of, load_rows
from stce_jax.reproduce.costs import read_speed, speed_file
from stce_jax.reproduce.report import write_report
from stce_jax.reproduce.running import LOG_FILE, accuracy, run_alone, run_cells
from stce_jax.reproduce.states import State, state_of
from stce_jax.reproduce.subprocesses import run_command
from stce_jax.reproduce.sweep import (
    Sweep,
    check_alone,
    check_local,
    check_overrides,
    check_rows,
    check_sweep,
    find_cell,
    one_at_a_time,
    open_sweep,
)
from stce_jax.training import assemble as runs
from stce_jax.workdir.claim import InUseError

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
      table: "table1", "table6", "table7", "table8", "readings", or "all" of them; or a study, "reductions",
        "bodies", "clustering", "recipe" or "recipe_test".
      workdir: local directory, see `stce_jax.reproduce.cells`; several machines may work on one that they share.
      scale: such as "paper", "small" or "smoke", see `configs/tables/scales.py`.
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
    sweep = Sweep(table, workdir, scale, tuple(seeds), data_dir, tuple(only), tuple(overrides))
    check_alone(workdir)
    rows = _checked_rows(sweep)
    cells = sweep.cells(rows)
    # An error in the images is reported once, not for every cell.
    dataset = runs.open_dataset(rows[0].config(), data_dir) if cells else None
    with StopSignals() as stop, _named(sweep):
        open_sweep(sweep, dataset, stop)
        failures, left = run_cells(cells, data_dir, stop)
        report = _report(sweep, rows, dataset, stop, timed=True)
    elsewhere = sum(not cell.finished() for cell in left)
    if elsewhere:
        terminal.say(f"{elsewhere} cells are another job's; run again once it is done, for the whole report")
    if failures:
        names = ", ".join(cell.directory.name for cell, _ in failures)
        code = failures[0][1]["exit_code"]
        raise CellsFailedError(f"{len(failures)} of {len(cells)} cells failed ({names}); {report} says why", code)
    return report


def list_cells(sweep: Sweep) -> list[State]:
    """How far each cell of a sweep is, in the order in which they are trained; nothing is made or touched.

    Raises:
      ConfigError: see `reproduce`.
    """
    check_local(sweep.workdir)
    rows = _checked_rows(sweep)
    check_sweep(sweep)
    return [state_of(cell) for cell in sweep.cells(rows)]


def run_cell(sweep: Sweep, name: str) -> str:
    """Trains and evaluates one cell of a sweep, unless that is done or another job does it.

    Any number of jobs may do this in a workdir that they share, and do it again after they were killed. In a workdir of
    its own, a cell gives the same files, which may be copied into another workdir of the same sweep.

    Args:
      sweep: all of it, for its workdir must belong to it.
      name: such as "stce_seed0".

    Returns:
      What came of it, in words.

    Raises:
      ConfigError: there is no such cell; else see `reproduce`.
      CellsFailedError: it failed.
      PreemptedError: stopped by a signal; what was trained is saved.
    """
    check_alone(sweep.workdir)
    rows = sweep.rows()
    check_overrides(rows, sweep.overrides)
    cell = find_cell(sweep.cells(rows), name)
    check_rows([cell.row], [cell.seed], ())
    check_sweep(sweep)
    if cell.finished():  # which needs no images
        return f"{name}: done before: {accuracy(cell)}"
    dataset = runs.open_dataset(cell.row.config(), sweep.data_dir)
    with StopSignals() as stop, _named(sweep):
        open_sweep(sweep, dataset, stop)
        try:
            record = run_alone(cell, sweep.data_dir, stop)
        except InUseError as error:
            return f"{name}: left to the job that is at work on it: {error}"
    if record.get("exit_code"):
        log = cell.directory / LOG_FILE
        raise CellsFailedError(f"{name} failed: {record['error']}; see {log}", record["exit_code"])
    return f"{name}: {accuracy(cell)}" + (f"  ({record['seconds']:.0f} s)" if record else "")


def submit_cells(sweep: Sweep, engine: str, resources: jobs.Resources | None = None) -> None:
    """Hands the cells that are neither done nor at work to a scheduler, and says where they are.

    Args:
      sweep: what to train.
      engine: "slurm", whose nodes must see the workdir, the images and this Python; or "local", processes of this
        machine, which are waited for.
      resources: of each job; None: a day, and what the scheduler gives.

    Raises:
      ConfigError: submitit or Slurm are not there, or refuse the jobs; else see `reproduce`.
      CellsFailedError: "local": some cells are not done.
      PreemptedError: "local": stopped by a signal; what was trained is saved.
    """
    resources = resources or jobs.Resources()
    resources.check(engine)
    jobs.import_submitit()
    check_alone(sweep.workdir)
    jobs.check_workdir(sweep.directory)
    rows = _checked_rows(sweep)
    cells = sweep.cells(rows)
    if not cells:
        raise ConfigError(f"{sweep.table} needs no runs; there is nothing to submit")
    dataset = runs.open_dataset(rows[0].config(), sweep.data_dir)
    with StopSignals() as stop, _named(sweep):
        open_sweep(sweep, dataset, stop)
        states = {cell.directory.name: state_of(cell) for cell in cells}
        for state in states.values():
            if state.state == "running":
                terminal.say(f"{state.name}: left out: {state.note}, is at work on it")
        left = [cell for cell in cells if states[cell.directory.name].state not in ("done", "running")]
        if not left:
            terminal.say(f"nothing to submit: of {len(cells)} cells all are done or at work")
            return
        jobs.submit(left, sweep.from_anywhere().words(), sweep.directory, engine, resources, stop)
    if engine == "local":
        if stop.requested:
            raise stopped(stop.requested, "while jobs ran, whose state is saved")
        failed = [cell for cell in left if not cell.finished()]
        if failed:
            names = ", ".join(cell.directory.name for cell in failed)
            code = failed[0].record().get("exit_code") or 1
            raise CellsFailedError(f"{len(failed)} of {len(left)} cells are not done ({names}); --list says why", code)


def report_cells(sweep: Sweep) -> Path:
    """Writes the report of what there is; trains nothing and times nothing. See `reproduce`."""
    check_local(sweep.workdir)
    rows = _checked_rows(sweep)
    if not sweep.directory.is_dir():
        raise ConfigError(f"there is no sweep in {sweep.workdir}; give the --workdir that the runs are in")
    dataset = runs.open_dataset(rows[0].config(), sweep.data_dir) if sweep.cells(rows) else None
    with StopSignals() as stop, _named(sweep):
        open_sweep(sweep, dataset, stop)
        return _report(sweep, rows, dataset, stop, timed=False)


def _checked_rows(sweep: Sweep) -> list[Row]:
    rows = sweep.rows()
    check_rows(rows, sweep.seeds, sweep.overrides)
    return rows


def _named(sweep: Sweep) -> Any:
    return named_failures(f"use workdir {sweep.directory}", "give another --workdir")


def _report(sweep: Sweep, rows: Sequence[Row], dataset: Any, stop: StopSignals, *, timed: bool) -> Path:
    """Writes the report, after timing the models of each table unless that is done or not wanted."""
    directory = sweep.directory
    with one_at_a_time(directory, stop):
        for name in sweep.tables if timed else ():
            if name in TRAINED and name not in recipe_protocol.TABLES:  # whose times are data of their protocol
                every = load_rows(name, sweep.scale, sweep.overrides)
                _measure_speed(name, every, sweep.seeds, directory, stop)
        speed = read_speed(directory, sweep.tables)
        command = shlex.join(sweep.words())
        return write_report(directory, rows, sweep.seeds, command=command, dataset=dataset, speed=speed)


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
