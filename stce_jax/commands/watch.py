"""The words of `stce watch`."""

import argparse
from collections.abc import Sequence

from stce_jax.commands import common
from stce_jax.platform import terminal

HELP = "keep a page with the curves of runs while they train"
EXAMPLES = """
  stce watch runs/digits runs/patch
  stce watch runs/tables/cells/* --output=tables.html --every=60
  stce watch runs/digits --once

Open the page in a browser: it is one file, needs no server, and loads itself again while this command runs. Runs whose
configs differ in their seed alone are drawn as their mean with its 95% interval. Ctrl-C ends it (exit code 130); the
page stays, and no longer loads itself again."""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("workdirs", nargs="+", metavar="RUN", help="workdirs of runs, finished or not")
    verb.add_argument("--output", default="watch.html", help="the page (default: watch.html)")
    verb.add_argument("--every", type=float, default=30.0, metavar="SECONDS", help="how often it is written (30)")
    verb.add_argument("--once", action="store_true", help="write it once and end")
    common.add_modules(verb)


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    from stce_jax.processes.stopping import StopSignals
    from stce_jax.verbs.watch import watch

    common.register_modules(arguments)
    with StopSignals() as signals:  # so that a page is written whole, and the last one says that it is

        def report(line: str) -> None:
            rhythm = "" if arguments.once else f", written every {arguments.every:g} seconds until Ctrl-C"
            terminal.say(line + rhythm)

        options = {"every": arguments.every, "once": arguments.once, "report": report}
        watch(arguments.workdirs, arguments.output, stopped=lambda: bool(signals.requested), **options)
    if signals.requested == "SIGTERM":
        arguments.exit_process("terminated", 143)  # as shells have it
    if signals.requested:
        raise KeyboardInterrupt
