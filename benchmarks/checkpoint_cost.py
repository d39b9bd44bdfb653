"""What a checkpoint costs: how long it keeps the train step waiting, how long it takes in the background, its size.

    python benchmarks/checkpoint_cost.py --model vit_s_stce

The state is that of the paper's recipe (AdamW, moving average, 100 classes), the train step, too, augmentation and all.
A full batch takes too long here to be repeated on a CPU: the step is measured with `--batch` images and scaled to the
recipe's 128 in proportion; on a GPU pass `--batch 128`, or what a step takes by `--step_seconds`. Files are written
through the page cache: a disk slower than memory shows in the background's seconds once that is full. CPU seconds are
of all threads of the process.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
from measure import machine, markdown_table

from stce_jax.analysis.costs import count_parameters
from stce_jax.data.catalog import IMAGENET_MEAN, IMAGENET_STD
from stce_jax.training import assemble as runs
from stce_jax.training.mesh import batch_sharding, make_mesh, sharded_shapes
from stce_jax.training.optimization import build_optimizer
from stce_jax.training.state import abstract_state, init_state
from stce_jax.training.step import make_train_step, run_key
from stce_jax.workdir import config as configuration
from stce_jax.workdir import digests
from stce_jax.workdir.checkpoint_writer import CheckpointWriter

CLASSES = 100
IMAGES = 130_000  # of ImageNet100


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_s_stce")
    parser.add_argument("--batch", type=int, default=8, help="images in the train step that is measured (8)")
    parser.add_argument("--step_seconds", type=float, help="of a whole batch; instead of what is measured, scaled up")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", help="where to write, in a new directory (the system's one for such files)")
    options = parser.parse_args()
    config = configuration.load_config("stce_vit_s", [f"--config.model.name={options.model}"])
    with tempfile.TemporaryDirectory(prefix="stce_checkpoint_cost", dir=options.directory) as folder:
        measured, state, size = measure(config, options.batch, options.rounds, Path(folder))
    parameters = count_parameters(state.variables["params"])
    print(f"{machine()}\n{options.model}, {parameters:,} parameters; median of {options.rounds} (least to most)\n")
    print(markdown_table([{"what": name, **spread(seconds)} for name, seconds in measured.items()]))
    median = {name: statistics.median(wall for wall, _ in seconds) for name, seconds in measured.items()}
    own, blocked = median[step_name(options.batch)], median[BLOCKED]
    slower = median[step_name(options.batch, writing=True)] - own
    step = options.step_seconds or own * config.batch_size / options.batch
    steps = IMAGES / config.batch_size
    print(f"\non disk: {size:,} bytes, {size / 2**20:.1f} MiB, {size / parameters:.2f} bytes a parameter")
    print(f"a step of {config.batch_size} images takes {step:.3g} s; a checkpoint blocks {blocked / step:.2%} of that")
    for name, lost in (("blocked", blocked), ("blocked, and slower while it is written", blocked + slower)):
        print(f"one checkpoint an epoch of {steps:,.1f} steps, {name}: {lost / (steps * step):.4%} of the time")


BLOCKED, SEALED, DIGESTS = "save returns after", "from there until it is sealed", "the digests of its files, alone"
VERIFIED, RESTORED = "verifying", "restoring, verified before"


def step_name(batch, writing=False):
    return f"train step, {batch} images" + (", begun while a checkpoint is written" if writing else "")


def measure(config, batch_size, rounds, folder):
    """({what: [(wall seconds, CPU seconds) a round]}, the last state, bytes of a checkpoint)."""
    dataset = SimpleNamespace(train=range(IMAGES), class_names=range(CLASSES), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    timetable = runs.build_timetable(config, dataset)
    model = runs.build_model(config, CLASSES)
    _, optimizer = build_optimizer(config, timetable)
    mesh = make_mesh()
    shapes = {"image_size": config.image_size, "with_ema": True}
    blank = abstract_state(model, optimizer, **shapes)
    state = init_state(model, optimizer, seed=0, mesh=mesh, **shapes)
    own = {"ema_decay": config.optimizer.ema_decay, "state": blank, "mesh": mesh}
    train_step = make_train_step(model, optimizer, runs.build_augment(config, dataset), **own)
    key = run_key(0, mesh)
    batch = jax.device_put(made_up_batch(batch_size, config.image_size), batch_sharding(mesh))
    names = (step_name(batch_size), step_name(batch_size, writing=True), BLOCKED, SEALED, DIGESTS, VERIFIED, RESTORED)
    measured = {name: [] for name in names}

    def timed(name, function, *arguments):
        wall, cpu = time.perf_counter(), time.process_time()
        result = jax.block_until_ready(function(*arguments))
        measured[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        return result

    with CheckpointWriter(folder / "checkpoints", keep=1) as checkpoints:
        for _ in range(rounds + 1):  # the first compiles and makes threads
            state, _ = timed(step_name(batch_size), train_step, state, batch, key)
            timed(BLOCKED, checkpoints.save, state, {})
            timed(SEALED, checkpoints.wait)
            written = folder / "checkpoints" / str(int(state.step))
            size = sum(path.stat().st_size for path in written.rglob("*") if path.is_file())
            timed(VERIFIED, digests.find_damage, written)
            timed(RESTORED, checkpoints.restore, int(state.step), sharded_shapes(blank, mesh))
            again = shutil.copytree(written, folder / "again", copy_function=os.link)
            (again / digests.FILE_NAME).unlink()
            timed(DIGESTS, digests.write_digests, again)
            shutil.rmtree(again)
            state, _ = timed(step_name(batch_size), train_step, state, batch, key)
            timed(BLOCKED, checkpoints.save, state, {})
            state, _ = timed(step_name(batch_size, writing=True), train_step, state, batch, key)
            checkpoints.wait()
    first = {name: len(seconds) // (rounds + 1) for name, seconds in measured.items()}
    return {name: seconds[first[name] :] for name, seconds in measured.items()}, state, size


def made_up_batch(count, size):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return {"image": images, "label": np.arange(count, dtype=np.int32) % CLASSES}


def spread(seconds):
    cells = {}
    for name, values in zip(("seconds", "CPU seconds"), zip(*seconds, strict=True), strict=True):
        cells[name] = f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"
    return cells


if __name__ == "__main__":
    main()
