"""`stce reproduce`: trains the rows of the paper's tables, and writes what came of them beside what the paper prints.

A cell, one row with one seed, is trained and evaluated by `stce train` and `stce evaluate`, each a process of its own:
what ends one ends no other, and the report's commands are those that were run. Cells that are finished are skipped,
cells that another machine is at work on are left to it.
"""

import contextlib
import json
import shlex
import time
from pathlib import Path

from stce_jax import runs
from stce_jax.accuracy.files import IN_RUN, SCORES
from stce_jax.engine import clusters
from stce_jax.engine.stopping import StopSignals, stopped
from stce_jax.engine.workdir import Claim
from stce_jax.errors import ConfigError, StceError
from stce_jax.paths import absolute, first_line, is_remote, write_text
from stce_jax.sweep.cells import CELL_FILE, TABLES, TRAINED, cell_of, cells_of, load_rows
from stce_jax.sweep.report import read_speed, speed_file, write_report
from stce_jax.sweep.subprocesses import describe_place, run_command

SWEEP_FILE = "sweep.json"
LOG_FILE = "log.txt"
ROUNDS = 7  # turns of each model when a table's speeds are measured; fewer than 6 have no interval


class CellsFailedError(StceError):
    """Some cells could not be trained or evaluated."""

    def __init__(self, message, exit_code):
        super().__init__(message)
        self.exit_code = exit_code


def reproduce(table, workdir, *, scale="paper", seeds=(0, 1, 2), data_dir="", only=(), overrides=()):
    """Trains what a table needs and is not there yet, and writes report.md, report.html and figures into the workdir.

    The runs are processes of their own and want the devices' memory: a process that calls this should hold none of it.

    Args:
      table: "table1", "table6", "table7", "table8", "readings", or "all" of them.
      workdir: local directory, see `stce_jax.sweep.cells`; several machines may work on one that they share.
      scale: "paper", "small" or "smoke", see `configs/tables/scales.py`.
      seeds: of the runs.
      data_dir: where the images are, as everywhere.
      only: names of runs, to leave the other rows out; () for all.
      overrides: words such as "--config.image_size=128", for every row alike.

    Returns:
      Path of report.md.

    Raises:
      ConfigError: an unknown table, scale or run, or a workdir that holds another sweep.
      DataError: the images are not there.
      CellsFailedError: some cells failed, which is in the report, too; all others are done.
      PreemptedError: stopped by a signal; what was trained is saved.
    """
    _check_alone(workdir)
    given, workdir = workdir, Path(absolute(workdir))
    tables = TABLES if table == "all" else (table,)
    rows = _chosen([row for name in tables for row in load_rows(name, scale, overrides)], only)
    cells = cells_of(rows, seeds, workdir)
    dataset = None
    if cells:
        for cell in cells:  # refuses bad overrides and seeds before anything is trained
            runs.build_model(cell.row.config(f"--config.seed={cell.seed}"), 1)
        dataset = runs.open_dataset(rows[0].config(), data_dir)  # says what is wrong with it once, not for every cell
    _open_sweep(workdir, scale, overrides)
    with StopSignals() as stop:
        failed, elsewhere = _run_cells(cells, data_dir, stop)
        for name in tables:
            if name in TRAINED:
                _measure_speed(name, [row for row in rows if row.table == name], seeds, workdir, stop)
    words = ["stce", "reproduce", table, f"--scale={scale}", f"--seeds={','.join(map(str, seeds))}"]
    words += [f"--data_dir={data_dir}"] * bool(data_dir) + [f"--runs={','.join(only)}"] * bool(only)
    words += [f"--workdir={given}", *overrides]
    speed = read_speed(workdir, tables)
    report = write_report(workdir, rows, seeds, command=shlex.join(words), dataset=dataset, speed=speed)
    if elsewhere:
        print(f"{elsewhere} cells are another job's; run again once it is done, for the whole report", flush=True)
    if failed:
        names = ", ".join(cell.directory.name for cell in failed)
        code = failed[0].record()["exit_code"]
        raise CellsFailedError(f"{len(failed)} of {len(cells)} cells failed ({names}); {report} says why", code)
    return report


def _check_alone(workdir):
    if clusters.detect():
        raise ConfigError(
            "reproduce trains each run in one process; start it once a machine, all with the same --workdir, and "
            "without the variables that make several processes one run"
        )
    if is_remote(workdir):
        raise ConfigError(f"--workdir={workdir}: reproduce needs a local directory, or one that machines share")


def _chosen(rows, only):
    known = dict.fromkeys(row.run for row in rows)
    for name in only:
        if name not in known:
            raise ConfigError(f"there is no run {name!r}; there are {', '.join(known)}")
    return [row for row in rows if not only or row.run in only]


def _open_sweep(workdir, scale, overrides):
    """Makes a workdir that of a sweep of this scale, or refuses it."""
    own = {"scale": scale, "overrides": list(overrides)}
    path = workdir / SWEEP_FILE
    try:
        found = json.loads(path.read_text()) if path.exists() else own
        workdir.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(found) + "\n")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot use workdir {workdir}: {first_line(error)}; give another --workdir") from error
    if found != own:
        raise ConfigError(f"{workdir} holds a sweep of {_told(found)}, not of {_told(own)}; give another --workdir")


def _told(sweep):
    return " ".join([f"scale {sweep['scale']}", *sweep["overrides"]])


def _run_cells(cells, data_dir, stop):
    """Works cells off; returns (those that failed, how many are another job's)."""
    failed, elsewhere = [], 0
    place = None if all(cell.finished() for cell in cells) else describe_place()
    for number, cell in enumerate(cells, start=1):
        if cell.finished():
            continue
        name = f"{number}/{len(cells)}  {cell.directory.name}"
        _say(f"{name} ...")
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(Claim(cell.claim))
            except ConfigError as error:
                elsewhere += 1
                _say(f"{name}: left out: {error}")
                continue
            if cell.finished():  # by another job, just now
                continue
            record = _run_cell(cell, data_dir, place, stop)
        _say(f"{name}: {record['error'] or _accuracy(cell)}  ({record['seconds']:.0f} s)")
        if record["exit_code"]:
            failed.append(cell)
    return failed, elsewhere


def _accuracy(cell):
    evaluation = json.loads((cell.directory / IN_RUN / SCORES).read_text())
    return f"top-1 {100 * evaluation['top1']:.2f}%"


def _run_cell(cell, data_dir, place, stop):
    """Trains and evaluates a cell; returns the record of it, which is also written.

    Raises:
      PreemptedError: a signal came; the run has saved what it had.
    """
    cell.directory.mkdir(parents=True, exist_ok=True)
    commands = [["stce", *words] for words in cell.commands(data_dir)]
    record = {"commands": [shlex.join(words) for words in commands], "place": place}
    record["seconds"] = cell.record().get("seconds", 0.0)  # of earlier starts
    for words in commands:
        start = time.monotonic()
        code, error = run_command(words, cell.directory / LOG_FILE, stop)
        record |= {"exit_code": code, "error": error, "seconds": record["seconds"] + time.monotonic() - start}
        write_text(cell.directory / CELL_FILE, json.dumps(record, indent=1) + "\n")
        if stop.asked:
            raise stopped(stop.asked, f"in {cell.directory.name}, whose state is saved")
        if code:
            break
    return record


def _measure_speed(name, rows, seeds, workdir, stop):
    """Has `stce benchmark` time the models of a table in turn, unless that is done; keeps its rows by run."""
    cells = {row.run: [cell for seed in seeds if (cell := cell_of(row, seed, workdir)).finished()] for row in rows}
    finished = [row for row in rows if cells[row.run]]
    finished.sort(key=lambda row: "images_per_second" not in row.paper)  # ratios are to the first
    path = speed_file(workdir, name)
    models = {}  # runs that differ in their length alone have one
    for row in finished:
        models.setdefault(row.config().model.to_json(), []).append(row.run)
    known = {measured["model"] for measured in read_speed(workdir, [name]).get(name, [])}
    if known >= {row.run for row in finished}:
        return
    _say(f"{name}: timing {len(models)} models in turn ...")
    path.parent.mkdir(exist_ok=True)
    directories = {str(cells[alike[0]][0].directory): alike for alike in models.values()}
    measured = path.with_suffix(".measured.json")
    words = ["stce", "benchmark", *directories, f"--rounds={ROUNDS}", f"--json={measured}"]
    code, error = run_command(words, path.with_suffix(".log"), stop)
    if stop.asked:
        raise stopped(stop.asked, "while speeds were measured; all runs are saved")
    if code:
        _say(f"{name}: no speeds: {error}")
        return
    rows = [row | {"model": run} for row in json.loads(measured.read_text()) for run in directories[row["model"]]]
    write_text(path, json.dumps(rows, indent=1) + "\n")


def _say(text):
    print(text, flush=True)
