"""`stce` commands as processes of their own, their output in a file: what ends one ends no other."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import stce_jax
from stce_jax.errors import ConfigError
from stce_jax.paths import open_own
from stce_jax.processes.stopping import StopSignals

# What `stce` does, of the very package that runs here, after asking for SIGTERM when the parent ends: the run then
# saves its state. preexec_fn would have to fork a process full of JAX's threads.
RUN = """import importlib.util, os, sys
path = sys.argv.pop(1)
sys.path.append(os.path.dirname(os.path.dirname(path)))  # for its own processes; last, so that it hides nothing
spec = importlib.util.spec_from_file_location("stce_jax", path)
sys.modules["stce_jax"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from stce_jax.platform import c_signals
c_signals.terminate_with_parent()
from stce_jax.cli import main
main()"""
# -P: nothing is imported from the directory where the command was started, whatever files lie there.
SAFE = ("-P", "-c")


def run_command(words: Sequence[str], log: Path, stop: StopSignals) -> tuple[int, str]:
    """Runs a command and waits for it; signals to this process are passed on to it, and it ends with this process.

    Args:
      words: ["stce", "train", ...].
      log: file that the command and its output are added to.
      stop: of this process.

    Returns:
      (exit code, "" or the last line of its output); for a command that a signal ended, 128 and the signal's number.
    """
    with open(open_own(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab") as output:
        output.write(f"$ {shlex.join(words)}\n".encode())
        output.flush()
        child = subprocess.Popen(
            [sys.executable, *SAFE, RUN, stce_jax.__file__, *words[1:]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        notified = False
        while (code := _ended(child)) is None:
            if stop.requested and not notified:
                notified = True
                child.terminate()
    if not code:
        return 0, ""
    if code < 0:
        return 128 - code, f"killed by {signal.Signals(-code).name}; see {log}"
    last = log.read_text(errors="replace").splitlines()[-1]
    return code, last.removeprefix("stce: ")


def _ended(child: subprocess.Popen[bytes]) -> int | None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        return child.wait(0.2)
    return None


def describe_place() -> str:
    """Machine, devices and versions, in words; read in another process, for this one must leave GPUs alone.

    Raises:
      ConfigError: JAX does not start there.
    """
    code = (
        "import jax, os, platform; devices, cores = jax.devices(), len(os.sched_getaffinity(0)); "
        "print(f'{platform.node()}, {cores} cores, "
        "{len(devices)} x {devices[0].device_kind}, Python {platform.python_version()}, jax {jax.__version__}')"
    )
    # A session of its own: Ctrl-C is for this process alone.
    done = subprocess.run([sys.executable, *SAFE, code], capture_output=True, text=True, start_new_session=True)
    if done.returncode:
        raise ConfigError(f"JAX does not start: {(done.stderr.splitlines() or ['it says nothing'])[-1]}")
    return done.stdout.strip()
