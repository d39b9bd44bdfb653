"""What more devices change: losses, time, and memory, for the state on each device and split over all (fsdp).

    python benchmarks/scaling.py                                   on 1, 2, 4 and 8 made-up CPU devices
    python benchmarks/scaling.py --model vit_s_stce --image_size 224 --batch 512 --devices 1 2 4 8      on as many GPUs

Trains a model on noise with the same global batch, seed and draws each time, and compares the losses with those on the
first number of devices. Each case is a process of its own, because the number of CPU devices is fixed when JAX starts.
So cases cannot be timed in turn, round by round, as the other benchmarks do: their times include the clock's drift, and
CPU time stands beside them. Made-up devices share the machine's cores, and cannot make it faster; what can be seen on
them is what dividing the work costs. State bytes are those that the largest holder of devices holds of parameters,
statistics, optimizer state and average; temporary bytes are what the compiled step needs besides, by XLA's account.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter

import jax
import numpy as np
from measure import machine, markdown_table

from stce_jax.models.factory import create_model
from stce_jax.recipe.augment import make_augment
from stce_jax.recipe.optimizers import make_optimizer
from stce_jax.recipe.schedules import make_schedule
from stce_jax.training.mesh import batch_sharding, check_batch_size, make_mesh
from stce_jax.training.state import init_state
from stce_jax.training.step import check_accumulation, make_train_step, run_key

CLASSES, SEED = 100, 0
WARM_UP = 2  # steps that are not timed
AUGMENT = make_augment(
    CLASSES,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    flip=0.5,
    shift=0,
    mixup=1.0,
    cutmix=0.8,
    switch_probability=0.5,
    label_smoothing=0.1,
    rand_augment="",
    three_augment=False,
    color_jitter=0.0,
    erase=0.0,
    erase_area=(0.02, 1 / 3),
    erase_ratio=(0.3, 3.3),
)


def make_batch(step, size, image_size):
    rng = np.random.default_rng(step)
    images = rng.integers(0, 256, (size, image_size, image_size, 3), dtype=np.uint8)
    return {"image": images, "label": rng.integers(0, CLASSES, size).astype(np.int32)}


def largest_holding(state):
    """Bytes of a state that the device holding most of it holds."""
    held = Counter()
    for leaf in jax.tree.leaves(state):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    return max(held.values())


def measure_case(options, devices, fsdp):
    """Trains on the first `devices` devices; returns losses and what was measured, as a dict for JSON."""
    mesh = make_mesh(fsdp, jax.devices()[:devices])
    check_batch_size(options.batch, mesh)
    check_accumulation(options.batch, options.accumulate, mesh)
    model = create_model(options.model, num_classes=CLASSES, image_size=options.image_size, dtype=options.dtype)
    schedule = make_schedule(peak=5e-4, warmup_from=1e-6, final=1e-5, warmup_steps=options.steps, total_steps=10**4)
    optimizer = make_optimizer(schedule, weight_decay=0.05, beta1=0.9, beta2=0.999, epsilon=1e-8, clip_norm=0.0)
    state = init_state(model, optimizer, seed=SEED, image_size=options.image_size, with_ema=True, mesh=mesh)
    train_step = make_train_step(
        model,
        optimizer,
        AUGMENT,
        ema_decay=0.9999,
        accumulate=options.accumulate,
        deterministic=False,
        state=state,
        mesh=mesh,
    )
    batches = [
        jax.device_put(make_batch(step, options.batch, options.image_size), batch_sharding(mesh))
        for step in range(options.steps)
    ]
    jax.block_until_ready(batches)
    key = run_key(SEED, mesh)
    compiled = train_step.lower(state, batches[0], key).compile()
    losses = []
    for step, batch in enumerate(batches):
        if step == WARM_UP:
            jax.block_until_ready(state)
            wall, cpu = time.perf_counter(), time.process_time()
        state, metrics = compiled(state, batch, key)
        losses.append(metrics["loss"])
    jax.block_until_ready(state)
    timed = options.steps - WARM_UP
    statistics = jax.devices()[0].memory_stats() or {}  # CPUs keep none
    return {
        "devices": devices,
        "fsdp": fsdp,
        "losses": [float(loss) for loss in losses],
        "wall": (time.perf_counter() - wall) / timed,
        "cpu": (time.process_time() - cpu) / timed,
        "state": largest_holding(state),
        "temporary": compiled.memory_analysis().temp_size_in_bytes,
        "peak": statistics.get("peak_bytes_in_use"),
        "machine": machine(),
    }


def run_case(words, devices, fsdp):
    """`measure_case` in a process of its own, with that many devices if they are made up."""
    command = [sys.executable, __file__, *words, "--case", str(devices), str(fsdp)]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table_row(case, first, batch):
    differences = np.abs(np.array(case["losses"]) / np.array(first["losses"]) - 1)
    megabytes = {name: case[name] / 1e6 for name in ("state", "temporary", "peak") if case[name] is not None}
    return {
        "devices": case["devices"],
        "fsdp": case["fsdp"],
        "largest difference of a loss": f"{differences.max():.1e}",
        "ms a step": f"{1e3 * case['wall']:.0f}",
        "CPU ms": f"{1e3 * case['cpu']:.0f}",
        "images/s": f"{batch / case['wall']:.0f}",
    } | {f"{name} MB a device": f"{value:.1f}" for name, value in megabytes.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_ti_stce")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32, help="images of the global batch")
    parser.add_argument("--dtype", default="float32", help="or bfloat16")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches")
    parser.add_argument("--steps", type=int, default=12, help=f"of which {WARM_UP} are not timed")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--json")
    parser.add_argument("--case", type=int, nargs=2, metavar=("DEVICES", "FSDP"), help="measure one case in here")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure_case(options, *options.case)))
        return
    cases = []
    for devices in options.devices:
        for fsdp in sorted({1, devices}):
            cases.append(run_case(sys.argv[1:], devices, fsdp))
            print(f"{devices} devices, fsdp {fsdp}: {1e3 * cases[-1]['wall']:.0f} ms", file=sys.stderr, flush=True)
    print(cases[-1]["machine"])
    print(f"{options.model}, {options.image_size} pixels, {options.dtype}, global batch {options.batch}, ", end="")
    print(f"{options.accumulate} micro-batch(es), {options.steps} steps\n")
    print(markdown_table([table_row(case, cases[0], options.batch) for case in cases]))
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"options": vars(options), "cases": cases}, file, indent=1)


if __name__ == "__main__":
    main()
