"""The program of tests that kill a command before one of its writes after the other, started again each time.

Argument: JSON, a list of {"folder": what is watched, "words": of `stce`, "stride": every how many writes}. For each
command it prints a line of JSON: what lies in the folder after each start, and the exit code of the last one.

A process that has imported everything, but in which JAX has computed nothing, makes a child of itself for each start.
"""

import importlib
import itertools
import json
import os
import signal
import sys

from stce_jax import cli
from stce_jax.convert import formats

for module in ("verbs.import_weights", "verbs.export", *(f"convert.formats.{name}" for name in formats.FORMATS)):
    importlib.import_module(f"stce_jax.{module}")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def kill_before(number, folder):
    """Has this process killed before its write of this number, counted from 0, below a folder."""
    numbers = itertools.count()

    def look(event, arguments):
        opens = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
        if not (opens or event in ("os.mkdir", "os.rename")) or not isinstance(arguments[0], str | os.PathLike):
            return
        if os.fspath(arguments[0]).startswith(folder) and next(numbers) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


def start(words, number, folder):
    """The exit code of a command that is killed before one of its writes, if it has as many."""
    if not (child := os.fork()):
        code = 1
        try:
            os.dup2(2, 1)
            kill_before(number, folder)
            cli.main(words)
        except SystemExit as end:
            code = end.code
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


for command in json.loads(sys.argv[1]):
    code, number, left = -signal.SIGKILL, command["stride"] - 1, []
    while code == -signal.SIGKILL:
        code = start(command["words"], number, command["folder"])
        left.append(sorted(os.listdir(command["folder"])))
        number += command["stride"]
    print(json.dumps({"left": left, "code": code}), flush=True)
