"""The cells of a sweep, trained and evaluated by `stce train` and `stce evaluate`, each a process of its own.

A cell is claimed by the job that works on it, so that jobs which share a workdir take different ones.
"""

import contextlib
import json
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stce_jax.analysis.files import IN_RUN, SCORES
from stce_jax.errors import PreemptedError
from stce_jax.paths import first_line, read_json, remedy, write_text
from stce_jax.platform import terminal
from stce_jax.processes.stopping import StopSignals, stopped
from stce_jax.reproduce.cells import CELL_FILE, Cell
from stce_jax.reproduce.subprocesses import describe_place, run_command
from stce_jax.reproduce.sweep import check_stop
from stce_jax.workdir.claim import Claim, InUseError, owner_of

LOG_FILE = "log.txt"
PATIENCE = 60.0  # seconds to wait for a run whose sweep is dead, or for a job that may be ending


def run_cells(
    cells: Sequence[Cell], data_dir: str, stop: StopSignals
) -> tuple[list[tuple[Cell, dict[str, Any]]], list[Cell]]:
    """Processes cells in turn; returns ([(cell, record) of those that failed], [those that are another job's])."""
    failures, left = [], []
    place = "" if all(cell.finished() for cell in cells) else describe_place()
    for number, cell in enumerate(cells, start=1):
        check_stop(stop)
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
        terminal.say(f"{name}: {record['error'] or accuracy(cell)}  ({record['seconds']:.0f} s)")
        if record["exit_code"]:
            failures.append((cell, record))
    return failures, left


def run_alone(cell: Cell, data_dir: str, stop: StopSignals) -> dict[str, Any]:
    """Processes one cell, of which the caller knows nothing; returns its record, {} if there is nothing to do.

    Raises:
      InUseError: another job works on it, and still does after `PATIENCE`: it was not one that is ending.
      PreemptedError: a signal came; what was trained is saved.
    """
    with _patient_claim(cell, stop):
        if cell.finished():
            return {}
        terminal.say(f"{cell.directory.name} ...")
        _wait_until_free(cell.directory)
        return _run_cell(cell, data_dir, describe_place(), stop)


@contextlib.contextmanager
def _patient_claim(cell: Cell, stop: StopSignals) -> Iterator[None]:
    """`Claim`, waiting for who may be ending: a scheduler starts a killed job again while its last one still saves."""
    deadline, waits = time.monotonic() + PATIENCE, False
    with contextlib.ExitStack() as stack:
        while True:
            check_stop(stop)
            try:
                stack.enter_context(Claim(cell.claim))
                break
            except InUseError:
                if time.monotonic() > deadline:
                    raise
                if not waits:
                    waits = True
                    owner = owner_of(cell.claim) or "another job"
                    terminal.say(f"{cell.directory.name}: {owner}, is at work on it; waiting up to {PATIENCE:.0f} s")
                time.sleep(0.5)
        yield


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


def accuracy(cell: Cell) -> str:
    """What a finished cell has come to, in words."""
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
