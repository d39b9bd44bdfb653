"""How long `stce train` takes from its start to its first step: with nothing compiled before, with XLA's cache filled,
and going on from a checkpoint.

    python benchmarks/start_up.py --rounds 5

Every measurement is a process of its own. From outside it is seen by its files: it claims the workdir (Python, imports
and data are done), opens its log (a state is restored, or begins to be made), and writes the line of its first step,
which is done by then (the train step is compiled). Then it is killed. The cache is the one that `stce` keeps by itself,
in a directory of this benchmark's. Python keeps the modules that it has compiled, as it does unless told otherwise.
Files come from the page cache. CPU seconds are of all threads, and repeat better than the clock's on a shared machine.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import machine, markdown_table

COMMAND = (sys.executable, "-P", "-m", "stce_jax")
POLL = 0.01  # seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each kind (5)")
    parser.add_argument("--config", default="digits", help="what is trained (digits)")
    parser.add_argument("--data_dir", default="", help="where its images are (the digits are made in a new directory)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stce_start_up") as folder:
        folder = Path(folder)
        words = [f"--config={options.config}", f"--data_dir={options.data_dir or folder / 'data'}"]
        cache, stopped = folder / "cache", folder / "stopped"
        # The first process prepares the data, the second fills the cache; a third, with what resuming compiles.
        watch(words, folder / "first", folder / "thrown away")
        watch(words, stopped, cache, end=signal.SIGTERM)
        watch(words, copy(stopped, folder / "resumed first"), cache, end=signal.SIGTERM)
        kinds = {
            "`stce --help`": lambda number: ask_for_help(),
            "cold": lambda number: watch(words, folder / f"cold {number}", folder / f"empty cache {number}"),
            "cache filled": lambda number: watch(words, folder / f"cached {number}", cache),
            "resumed, cache filled": lambda number: watch(words, copy(stopped, folder / f"resumed {number}"), cache),
        }
        measured = {kind: [] for kind in kinds}
        draw = random.Random(0)
        for number in range(options.rounds):
            for kind in draw.sample(list(kinds), len(kinds)):
                measured[kind].append(kinds[kind](number))
        size = sum(path.stat().st_size for path in cache.rglob("*-cache")) / 2**20
    # Only now: a process that has started JAX would hold an accelerator's memory.
    print(f"{machine()}\n{options.config}, {options.rounds} processes of each kind; the cache holds {size:.1f} MiB\n")
    print("seconds: median (least to most)\n")
    print(markdown_table([row(kind, seconds) for kind, seconds in measured.items()]))


def watch(words, workdir, cache, *, end=signal.SIGKILL):
    """Starts training and ends it after its first step.

    Args:
      words: of the command, without the workdir.
      workdir: of the run; resumed if it holds a checkpoint.
      cache: the user's cache directory.
      end: signal that ends the process; after SIGTERM it saves its state.

    Returns:
      {"workdir claimed", "log open", "first step": seconds since the start, "CPU": seconds of the whole process}.
    """
    events, step = count_logs(workdir), last_step(workdir)
    signs = {
        "workdir claimed": (workdir / "lock").exists,
        "log open": lambda: count_logs(workdir) > events,
        "first step": lambda: last_step(workdir) > step,
    }
    seconds, used = {}, cpu_of_children()
    command = [*COMMAND, "train", *words, f"--workdir={workdir}", "--config.log_every=1"]
    with tempfile.TemporaryFile("w+") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment(cache))
        for name, seen in signs.items():
            while not seen():
                if process.poll() is not None:
                    output.seek(0)
                    sys.exit(f"stce train ended by itself: {output.read().splitlines()[-1]}")
                time.sleep(POLL)
            seconds[name] = time.perf_counter() - start
        process.send_signal(end)
        process.wait()
    return seconds | {"CPU": cpu_of_children() - used}


def ask_for_help():
    used, start = cpu_of_children(), time.perf_counter()
    subprocess.run([*COMMAND, "--help"], capture_output=True, check=True)
    return {"whole": time.perf_counter() - start, "CPU": cpu_of_children() - used}


def environment(cache):
    """A user's whose cache directory that is."""
    own = ("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if not name.startswith(own)} | {
        "XDG_CACHE_HOME": str(cache)
    }


def copy(workdir, to):
    """A copy of a workdir that nobody has claimed."""
    return Path(shutil.copytree(workdir, to, ignore=shutil.ignore_patterns("lock")))


def count_logs(workdir):
    return len(list(workdir.glob("events*")))


def last_step(workdir):
    """The step of the last whole line of the metrics; 0 if there is none."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def cpu_of_children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def row(kind, measured):
    cells = {"start": kind}
    for name in ("workdir claimed", "log open", "first step", "CPU"):
        values = [seconds[name] for seconds in measured if name in seconds]
        cells[name] = spread(values) if values else ""
    if "whole" in measured[0]:
        cells["first step"] = f"(whole) {spread([seconds['whole'] for seconds in measured])}"
    return cells


def spread(values):
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
