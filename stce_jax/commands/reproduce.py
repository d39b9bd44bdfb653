"""The words of `stce reproduce`."""

import argparse
from collections.abc import Sequence

from stce_jax.commands import common
from stce_jax.errors import ConfigError
from stce_jax.platform import terminal

HELP = "train the rows of the paper's tables, and report them beside what the paper prints"
EXAMPLES = """
  stce reproduce table6 --scale=smoke --seeds=0,1 --workdir=runs/smoke
  stce reproduce all --workdir=runs/tables
  stce reproduce table8 --scale=small --data_dir=~/images --workdir=runs/small --config.image_size=64
  stce reproduce table6 --runs=patch,stce --seeds=0 --workdir=runs/tables"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "table",
        help="table1, table6, table7, table8, readings (what the paper leaves open), or all; or a study: reductions, "
        "bodies, clustering",
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
    verb.set_defaults(takes_overrides=True)


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    try:
        seeds = tuple(dict.fromkeys(int(seed) for seed in arguments.seeds.split(",")))
    except ValueError:
        raise ConfigError(f"--seeds={arguments.seeds} must be whole numbers with commas between: 0,1,2") from None
    from stce_jax.platform import jax_settings
    from stce_jax.verbs.reproduce import reproduce

    jax_settings.use_cpus_only()  # this process only counts; the runs need all of a GPU's memory
    report = reproduce(
        arguments.table,
        arguments.workdir,
        scale=arguments.scale,
        seeds=seeds,
        data_dir=arguments.data_dir,
        only=tuple(filter(None, arguments.runs.split(","))),
        overrides=overrides,
    )
    terminal.say(f"report in {report} and {report.with_suffix('.html')}")
