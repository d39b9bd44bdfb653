"""The training step on an accelerator: how fast, how much memory, and which kernels it spends its time in.

    python benchmarks/step_profile.py --batch 256            on a GPU, bfloat16, 224 pixels
    python benchmarks/step_profile.py --batch 2 --image_size 64 --dtype float32 --steps patch    on a CPU, to try it

Steps are those of `stce train`, on a batch that lies on the device: of STCE, of patches, of STCE with T = 1 ("stce,
T=1"), with attention by products in place of the fused kernel ("products"), and with the paper's augmentation
("augmented"). They are timed one after the other, for each compiles for half a minute; on a GPU that does nothing else
the clock repeats within a percent. Profiles are of GPUs alone: `jax.profiler` records a few steps, and the time of all
kernels of one name is summed up.
"""

import argparse
import collections
import glob
import os
import re
import tempfile
import time

import jax
import numpy as np
from augmentation_cost import RECIPES, made_up_images
from measure import machine, markdown_table
from training import CLASSES, compile_step, model_and_batch

from stce_jax.models.ops import attention
from stce_jax.recipe import augment

STEPS = ("stce", "patch", "stce, T=1", "products", "augmented")
KERNELS = 20  # named in a profile


def make_step(what, arguments):
    """The `training.Step` of one of STEPS."""
    size, batch_size = arguments.image_size, arguments.batch
    options = {"iterations": 1} if what == "stce, T=1" else {}
    name = "vit_s_patch" if what == "patch" else "vit_s_stce"
    model, variables, images, labels = model_and_batch(name, batch_size, size, arguments.dtype, **options)
    if what == "augmented":
        change = augment.make_augment(CLASSES, **RECIPES["the paper's (DeiT)"])
        return compile_step(model, variables, made_up_images(batch_size, size), labels, change)
    return compile_step(model, variables, images, labels)


def seconds_a_step(call, seconds):
    """The median of five bursts of steps that take about so long in all."""
    for _ in range(2):
        jax.block_until_ready(call())
    start = time.perf_counter()
    jax.block_until_ready(call())
    count = max(1, int(seconds / 5 / (time.perf_counter() - start)))
    bursts = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(count):
            metrics = call()
        jax.block_until_ready(metrics)
        bursts.append((time.perf_counter() - start) / count)
    return float(np.median(bursts))


def kernel_times(call, steps=3):
    """{kernel's name without its number: ms a step} of a GPU's streams, the longest first; {} without a GPU."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                metrics = call()
            jax.block_until_ready(metrics)
        (path,) = glob.glob(os.path.join(folder, "**", "*.xplane.pb"), recursive=True)
        profile = jax.profiler.ProfileData.from_file(path)
    times = collections.Counter()
    for plane in profile.planes:
        for line in plane.lines if "GPU" in plane.name else ():
            for event in line.events if "Stream" in line.name else ():
                times[re.sub(r"[_.]?\d+", "", event.name)[:60]] += event.duration_ns / 1e6 / steps
    return dict(times.most_common())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing a step, about")
    arguments = parser.parse_args()
    rows, profiles, has_fused_kernel = [], {}, attention.has_fused_kernel
    for what in arguments.steps:
        attention.has_fused_kernel = (lambda width, dtype: False) if what == "products" else has_fused_kernel
        step = make_step(what, arguments)
        seconds = seconds_a_step(step.call, arguments.seconds)
        profiles[what] = kernel_times(step.call)
        rows.append(
            {
                "step": what,
                "ms": f"{1e3 * seconds:.2f}",
                "images/s": f"{arguments.batch / seconds:,.0f}",
                "temporary MB an image": f"{step.temporary_bytes / arguments.batch / 1e6:.1f}",
                "compiling, s": f"{step.compile_seconds:.0f}",
            }
        )
        print(rows[-1], flush=True)
    print(f"\n{machine()}; batch {arguments.batch}, {arguments.image_size} pixels, {arguments.dtype}\n")
    print(markdown_table(rows))
    for what, times in profiles.items():
        if times:
            shown = [{"kernel": name, "ms a step": f"{ms:.3f}"} for name, ms in list(times.items())[:KERNELS]]
            print(f"\n{what}, {sum(times.values()):.2f} ms of kernels:\n\n{markdown_table(shown)}")


if __name__ == "__main__":
    main()
