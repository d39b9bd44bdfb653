"""The `stce` command: errors to one line and an exit code. `commands` says what words each verb takes.

JAX is imported by the verbs, not here: `stce --help` answers at once.
"""

import argparse
import os
import sys
import threading
import traceback

from stce_jax.commands import (
    benchmark,
    compare,
    completion,
    evaluate,
    export,
    features,
    models,
    predict,
    prepare,
    reproduce,
    show_data,
    train,
    visualize,
)
from stce_jax.errors import ConfigError, PreemptedError, StceError
from stce_jax.platform import compile_cache, freed_memory

EXIT_CODES = """exit codes:
  0 done   2 bad config or arguments   3 bad data   4 bad checkpoint   5 diverged   75 stopped and saved: run again"""

VERBS = {  # in the order of `stce --help`
    "train": train,
    "show-data": show_data,
    "prepare": prepare,
    "evaluate": evaluate,
    "predict": predict,
    "features": features,
    "compare": compare,
    "models": models,
    "reproduce": reproduce,
    "benchmark": benchmark,
    "export": export,
    "visualize": visualize,
    "completion": completion,
}


def main(argv=None):
    """Runs the command line and exits with its code.

    Args:
      argv: its words; by default the process's own, which then may be ended without a return to Python.
    """
    own = argv is None
    argv = sys.argv[1:] if own else argv
    debug = "--debug" in argv
    try:
        arguments, rest = make_parser().parse_known_args([word for word in argv if word != "--debug"])
        if rest and not arguments.takes_overrides:
            raise ConfigError(f"unknown argument {rest[0]!r}; see stce {arguments.verb} --help")
        arguments.own, arguments.leave, arguments.make_parser = own, _leave_at_once, make_parser
        if own:
            compile_cache.turn_on()
            freed_memory.keep()
        arguments.run(arguments, rest)
    except StceError as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, PreemptedError) and (processes := _several()):
            processes.leave()  # all have stopped at the same step, but not all may have finished saving it
        _leave(" ".join(str(error).split()), error.exit_code, own)
    except BrokenPipeError:  # of `stce ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains while it exits
        sys.exit(141)  # as shells do
    except KeyboardInterrupt:
        _leave("interrupted", 130, own)  # as shells do
    except Exception as error:
        if not _several():
            raise
        traceback.print_exc()
        _leave(f"{type(error).__name__}: {' '.join(str(error).split())}", 1, own)
    sys.exit(0)


def _leave(message, exit_code, own):
    """Ends the process; its own at once if it is one of several, or if something may keep Python from ending."""
    waited_for = [thread for thread in threading.enumerate()[1:] if not thread.daemon]
    views = sys.modules.get("stce_jax.data.views")
    if own and (waited_for or (views and views.slowest()) or _several()):
        _leave_at_once(message, exit_code)
    print(f"stce: {message}", file=sys.stderr, flush=True)
    sys.exit(exit_code)


def _leave_at_once(message, exit_code):
    sys.stdout.flush()
    if processes := _several():
        processes.fail(message, exit_code)
    print(f"stce: {message}", file=sys.stderr, flush=True)
    os._exit(exit_code)


def _several():
    """The module of that name if this process is one of several."""
    processes = sys.modules.get("stce_jax.processes.peers")
    several = getattr(processes, "several", bool)  # a signal may come while the module is being imported
    return processes if several() else None


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ConfigError(f"{message}; see {self.prog} --help")


def make_parser():
    """The argparse parser of the whole command line."""
    parser = _Parser(
        prog="stce",
        description="Train, compare and reuse vision-transformer embeddings.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    for name, module in VERBS.items():
        verb = verbs.add_parser(
            name,
            help=module.HELP,
            description=f"{module.HELP[0].upper()}{module.HELP[1:]}.",
            epilog=f"examples:{module.EXAMPLES}\n\n{EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.set_defaults(run=module.run, takes_overrides=False)
        verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
        module.add_arguments(verb)
    return parser
