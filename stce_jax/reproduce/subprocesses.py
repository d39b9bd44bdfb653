"""`stce` commands as processes of their own, their output in a file: what ends one ends no other."""

import contextlib
import shlex
import signal
import subprocess
import sys

from stce_jax.errors import ConfigError

# What `python -m stce_jax` does, after asking for SIGTERM when the parent ends: the run then saves its state.
# preexec_fn would have to fork a process full of JAX's threads.
RUN = """from stce_jax.platform import c_signals
c_signals.terminate_with_parent()
import runpy
runpy.run_module("stce_jax", run_name="__main__", alter_sys=True)"""


def run_command(words, log, stop):
    """Runs a command and waits for it; a signal to this process goes on to it, and it ends with this process.

    Args:
      words: ["stce", "train", ...].
      log: file that the command and its output are added to.
      stop: `StopSignals`.

    Returns:
      (exit code, "" or the last line of its output); of a signal's end the code is 128 and its number.
    """
    with open(log, "ab") as output:
        output.write(f"$ {shlex.join(words)}\n".encode())
        output.flush()
        child = subprocess.Popen(
            [sys.executable, "-c", RUN, *words[1:]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        told = False
        while (code := _ended(child)) is None:
            if stop.requested and not told:
                told = True
                child.terminate()
    if not code:
        return 0, ""
    if code < 0:
        return 128 - code, f"killed by {signal.Signals(-code).name}; see {log}"
    last = log.read_text(errors="replace").splitlines()[-1]
    return code, last.removeprefix("stce: ")


def _ended(child):
    with contextlib.suppress(subprocess.TimeoutExpired):
        return child.wait(0.2)
    return None


def describe_place():
    """Machine, devices and versions, in words; asked of another process, for this one must leave GPUs alone.

    Raises:
      ConfigError: JAX does not start there.
    """
    code = (
        "import jax, os, platform; devices = jax.devices(); print(f'{platform.node()}, {os.cpu_count()} cores, "
        "{len(devices)} x {devices[0].device_kind}, Python {platform.python_version()}, jax {jax.__version__}')"
    )
    # A session of its own: Ctrl-C is this process's to hear.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, start_new_session=True)
    if done.returncode:
        raise ConfigError(f"JAX does not start: {(done.stderr.splitlines() or ['it says nothing'])[-1]}")
    return done.stdout.strip()
