"""What a CPU's training step costs by the way in which the process keeps the memory that it frees.

    python benchmarks/kept_memory.py
    python benchmarks/kept_memory.py --models cmt_s --batch 8 --rounds 3

glibc is configured once in a process, so every measurement is a process of its own, and the ways take turns:

- glibc's own: freed buffers go back to the kernel, which clears each page when it is touched again.
- one heap: everything stays in one heap, which all threads share.
- as shipped: what `stce_jax.platform.freed_memory` does for `stce`.
- a device a core: the same, with as many JAX devices as there are cores.

Compiling leaves gaps in a heap, which a process that finds its programs in JAX_COMPILATION_CACHE_DIR has not. A step is
that of `stce train`, on a batch that lies in memory. Page faults are pages that the kernel gave in a step.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import jax
import training
from measure import machine, markdown_table

from stce_jax.platform import freed_memory

GLIBCS, ONE_HEAP, _, DEVICES = WAYS = ("glibc's own", "one heap", "as shipped", "a device a core")
MODELS = ["vit_s_stce", "cmt_s", "mobilevit_s"]


def measure_here(way, model, batch, steps):
    """{"ms", "cpu_ms", "faults"} of a step, the medians of so many, in this process."""
    if way != GLIBCS:
        freed_memory.keep(devices=2 if way == ONE_HEAP else None)  # as for several
    freed_memory.configure_jax()
    call = training.compile_step(*training.model_and_batch(model, batch, 224, "float32")).call
    found = []
    for _ in range(2 + steps):
        faults, cpu, wall = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time(), time.perf_counter()
        jax.block_until_ready(call())
        seconds = time.perf_counter() - wall, time.process_time() - cpu
        found.append((*seconds, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults))
    wall, cpu, faults = (statistics.median(column) for column in zip(*found[2:], strict=True))
    return {"ms": 1e3 * wall, "cpu_ms": 1e3 * cpu, "faults": faults}


def measure(way, *setting):
    """`measure_here` in a process of its own."""
    command = [sys.executable, __file__, "--here", json.dumps([way, *setting])]
    devices = len(os.sched_getaffinity(0)) if way == DEVICES else 1
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2, help="processes of each way")
    parser.add_argument("--steps", type=int, default=8, help="that a process times")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure_here(*json.loads(options.here))))
        return
    rows = []
    for model in options.models:
        measured = {way: [] for way in WAYS}
        for _ in range(options.rounds):
            for way in WAYS:
                measured[way].append(measure(way, model, options.batch, options.steps))
        for way in WAYS:
            ms, cpu, faults = (
                statistics.median(own[key] for own in measured[way]) for key in ("ms", "cpu_ms", "faults")
            )
            row = {"model": model, "memory": way, "ms a step": f"{ms:,.0f}", "CPU ms": f"{cpu:,.0f}"}
            rows.append(row | {"page faults": f"{faults:,.0f}"})
            print(*rows[-1].values(), flush=True)
    print(f"{machine()}; batch {options.batch}, 224 pixels, float32")
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
