"""The `stce` command: errors to one line and an exit code. `commands` has the arguments of each verb.

The verbs import JAX, not this module: `stce --help` answers at once.
"""

import argparse
import os
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

from stce_jax.commands import (
    benchmark,
    compare,
    completion,
    config,
    evaluate,
    export,
    features,
    import_weights,
    lr_find,
    models,
    predict,
    prepare,
    probe,
    reproduce,
    show_data,
    train,
    unknown,
    visualize,
    watch,
)
from stce_jax.errors import ConfigError, PreemptedError, StceError
from stce_jax.platform import compile_cache, freed_memory, garbage, lack_of_memory, life, terminal
from stce_jax.processes import peers as processes

EXIT_CODES = """exit codes:
  0 done   2 bad config or arguments   3 bad data   4 bad checkpoint   5 diverged   75 stopped and saved: run again"""

VERBS = {  # in the order of `stce --help`
    "train": train,
    "show-data": show_data,
    "lr-find": lr_find,
    "prepare": prepare,
    "evaluate": evaluate,
    "predict": predict,
    "features": features,
    "probe": probe,
    "compare": compare,
    "watch": watch,
    "models": models,
    "config": config,
    "reproduce": reproduce,
    "benchmark": benchmark,
    "import": import_weights,
    "export": export,
    "visualize": visualize,
    "completion": completion,
}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits with its code.

    Args:
      argv: its words; by default the process's own, which may then be ended without a return to Python.
    """
    own_process = argv is None
    words = sys.argv[1:] if argv is None else argv
    debug = "--debug" in words
    try:
        parser, words = make_parser(), unknown.with_todays_names(words)
        arguments, rest = parser.parse_known_args([word for word in words if word != "--debug"])
        if rest:
            unknown.refuse(rest, arguments)
        arguments.own_process, arguments.exit_process = own_process, _exit_at_once
        arguments.make_parser = make_parser
        if own_process:
            terminal.escape_what_python_prints()
            os.environ["PYTHONSAFEPATH"] = "1"  # loader processes import nothing that lies in the current directory
            compile_cache.turn_on()
            freed_memory.keep()
            garbage.collect_rarely()
        with lack_of_memory.named(arguments):
            arguments.run(arguments, rest)
    except StceError as error:
        if debug:
            terminal.print_traceback(type(error), error, error.__traceback__)
        if isinstance(error, PreemptedError):
            processes.leave()  # all have stopped at the same step, but not all may have finished saving it
        _exit(terminal.one_line(error), error.exit_code, own_process)
    except BrokenPipeError:  # of `stce ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains while it exits
        sys.exit(141)  # as shells do
    except KeyboardInterrupt:
        _exit("interrupted", 130, own_process)  # as shells do
    except Exception as error:
        if not processes.several():
            raise
        terminal.print_traceback(type(error), error, error.__traceback__)
        _exit(f"{type(error).__name__}: {terminal.one_line(error)}", 1, own_process)
    if own_process and not life.can_exit():
        sys.stdout.flush()
        os._exit(0)
    sys.exit(0)


def _exit(message: str, exit_code: int, own_process: bool) -> NoReturn:
    """Exits with a message; at once if this process is one of several, or if something may keep Python from exiting."""
    blocking = [thread for thread in threading.enumerate()[1:] if not thread.daemon]
    views = sys.modules.get("stce_jax.data.views")  # whose threads may hang in a file that cannot be read
    hanging = blocking or (views and views.slowest()) or not life.can_exit()
    if own_process and (hanging or processes.several()):
        _exit_at_once(message, exit_code)
    terminal.warn(message)
    sys.exit(exit_code)


def _exit_at_once(message: str, exit_code: int) -> NoReturn:
    sys.stdout.flush()
    if processes.several():
        processes.fail(message, exit_code)
    terminal.warn(message)
    os._exit(exit_code)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def make_parser() -> argparse.ArgumentParser:
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
        verb.set_defaults(option_strings=[name for action in verb._actions for name in action.option_strings])
    return parser
