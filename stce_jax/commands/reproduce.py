"""The words of `stce reproduce`."""

import argparse
import collections
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stce_jax.commands import common, tables
from stce_jax.errors import ConfigError, shown
from stce_jax.platform import terminal

if TYPE_CHECKING:
    from stce_jax.reproduce.states import State
    from stce_jax.reproduce.sweep import Sweep

HELP = "train the rows of the paper's tables, and report them beside what the paper prints"
EXAMPLES = """
  stce reproduce table6 --scale=smoke --seeds=0,1 --workdir=runs/smoke
  stce reproduce all --workdir=runs/tables
  stce reproduce table8 --scale=small --data_dir=~/images --workdir=runs/small --config.image_size=64
  stce reproduce table6 --runs=patch,stce --seeds=0 --workdir=runs/tables
  stce reproduce table6 --workdir=runs/tables --list
  stce reproduce table6 --workdir=runs/tables --cell=stce_seed0
  stce reproduce table6 --workdir=runs/tables --submit=slurm --partition=gpu --gpus=1 --time=12:00:00
  stce reproduce table6 --workdir=runs/tables --report"""
ALL = "all"
OF_JOBS = ("partition", "gpus", "cpus", "time", "parallel", "sbatch")


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "table",
        help="table1, table6, table7, table8, readings (what the paper leaves open), or all; or a study: reductions, "
        "bodies, clustering, recipe, recipe_test",
    )
    verb.add_argument("--workdir", required=True, help="directory of the runs and the report; finished runs are kept")
    verb.add_argument(
        "--scale",
        default="paper",
        help="paper (the default); of any class folders medium_128 (a GPU), medium or small (CPUs); smoke: seconds",
    )
    verb.add_argument("--seeds", default="0,1,2", help="seeds of the runs (0,1,2)")
    verb.add_argument("--runs", default="", help="names of runs, to leave the others out: patch,conv,stce")
    common.add_data_dir(verb, "where the images are; see configs/default.py, dataset")
    ways = verb.add_argument_group("instead of training all that is missing").add_mutually_exclusive_group()
    ways.add_argument(
        "--list",
        nargs="?",
        const=ALL,
        metavar="STATES",
        help="print the cells, in order; piped, one name a line. Or only those that are done, running, stopped, failed "
        "or planned, several with commas",
    )
    ways.add_argument("--cell", metavar="NAME", help="train one cell, such as stce_seed0; for any scheduler")
    ways.add_argument("--submit", metavar="ENGINE", help="slurm: hand the cells to it as jobs; local: to try that here")
    ways.add_argument("--report", action="store_true", help="write the report of the runs that there are")
    jobs = verb.add_argument_group("with --submit", "what a job, one cell, asks for")
    jobs.add_argument("--partition", metavar="NAME", help="of Slurm")
    jobs.add_argument("--gpus", type=int, metavar="N", help="of a job")
    jobs.add_argument("--cpus", type=int, metavar="N", help="cores of a job")
    jobs.add_argument("--time", help="minutes, or HOURS:MM:SS, after which a job saves and queues again (24:00:00)")
    jobs.add_argument("--parallel", type=int, metavar="N", help="most jobs at a time (Slurm 256, local 1)")
    jobs.add_argument("--sbatch", action="append", metavar="KEY=VALUE", help="another option of sbatch: account=me")
    verb.set_defaults(takes_overrides=True)


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    try:
        seeds = tuple(dict.fromkeys(int(seed) for seed in arguments.seeds.split(",")))
    except ValueError:
        raise ConfigError(f"--seeds={arguments.seeds} must be whole numbers with commas between: 0,1,2") from None
    of_jobs = [option for option in OF_JOBS if getattr(arguments, option) is not None]
    if of_jobs and arguments.submit is None:
        raise ConfigError(f"--{of_jobs[0]} is for jobs; give --submit=slurm, too")
    from stce_jax.platform import jax_settings
    from stce_jax.reproduce.sweep import Sweep
    from stce_jax.verbs import reproduce as verb

    jax_settings.use_cpus_only()  # this process only counts; the runs need all of a GPU's memory
    only = tuple(filter(None, arguments.runs.split(",")))
    data_dir, scale = arguments.data_dir, arguments.scale
    sweep = Sweep(arguments.table, arguments.workdir, scale, seeds, data_dir, only, tuple(overrides))
    if arguments.list is not None:
        _print_cells(sweep, arguments.list)
    elif arguments.cell is not None:
        terminal.say(verb.run_cell(sweep, arguments.cell))
    elif arguments.submit is not None:
        _submit(sweep, arguments)
    else:
        if arguments.report:
            report = verb.report_cells(sweep)
        else:
            report = verb.reproduce(
                sweep.table,
                sweep.workdir,
                scale=scale,
                seeds=seeds,
                data_dir=data_dir,
                only=only,
                overrides=overrides,
            )
        terminal.say(f"report in {report} and {report.with_suffix('.html')}")


def _print_cells(sweep: "Sweep", wanted: str) -> None:
    from stce_jax.reproduce.states import STATES
    from stce_jax.verbs.reproduce import list_cells

    chosen = list(STATES) if wanted == ALL else wanted.split(",")
    for state in chosen:
        if state not in STATES:
            raise ConfigError(f"--list={shown(wanted)} must be of {', '.join(STATES)}; of all cells without a value")
    cells = [cell for cell in list_cells(sweep) if cell.state in chosen]
    if not sys.stdout.isatty():
        if cells:
            terminal.say(*(cell.name for cell in cells))
        return
    terminal.say(*tables.aligned(cells), _counts(cells, list(STATES)))


def _counts(cells: Sequence["State"], states: Sequence[str]) -> str:
    """How many cells there are of each state, in words."""
    counts = collections.Counter(cell.state for cell in cells)
    parts = [f"{counts[state]} {state}" for state in states if counts[state]]
    return f"{len(cells)} cells" + f": {', '.join(parts)}" * bool(parts)


def _submit(sweep: "Sweep", arguments: argparse.Namespace) -> None:
    from stce_jax.reproduce.jobs import DAY, Resources, read_minutes, read_sbatch
    from stce_jax.verbs.reproduce import submit_cells

    resources = Resources(
        partition=arguments.partition or "",
        gpus=arguments.gpus,
        cpus=arguments.cpus,
        minutes=DAY if arguments.time is None else read_minutes(arguments.time),
        parallel=arguments.parallel,
        sbatch=read_sbatch(arguments.sbatch or ()),
    )
    submit_cells(sweep, arguments.submit, resources)
