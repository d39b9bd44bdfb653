"""Which forms for GPUs pay: each of `forms.GPU_FORMS` in a training step, and flags of XLA, kept one after the other.

    python benchmarks/gpu_forms.py --minutes 10              on a GPU, bfloat16, 256 images a step
    python benchmarks/gpu_forms.py --augmentation            there, RandAugment by what each image drew
    python benchmarks/gpu_forms.py --flags --minutes 4       there, XLA's flags, a process for each
    python benchmarks/gpu_forms.py --batch 2 --image_size 32 --dtype float32 --seconds 0.1    on a CPU, to try it

Steps are those of `stce train` on images that lie on the device. A form is first checked: loss and gradients of a step
with it must be those without. Then the step with the forms kept so far and the one with the next form as well are timed
in turn; the form is kept if the whole 95% interval of the ratio lies above 1. On other devices than CUDA's there are no
kernels, and what is kept there says nothing of GPUs.

What each reads and writes, `gpu_program.py` counts without a GPU.
"""

import argparse
import json
import os
import subprocess
import sys
import time

import jax
import numpy as np
from augmentation_cost import PAPER, made_up_images
from measure import interleave, machine, markdown_table, median_estimate
from training import CLASSES, compile_step, loss_of, model_and_batch

from stce_jax.models.ops.forms import GPU_FORMS, gpu_forms
from stce_jax.recipe.augment import make_augment
from stce_jax.recipe.rand_augment import sorted_operations

MODEL = "vit_s_stce"
TOLERANCES = {"float32": 1e-3, "bfloat16": 5e-2}  # of loss and gradients, each relative to the largest of its array
FLAGS = (  # measured one by one, against none
    "--xla_gpu_enable_command_buffer=",  # none of the operations in CUDA graphs
    "--xla_gpu_enable_command_buffer=FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN",
    "--xla_gpu_graph_min_graph_size=1",
    "--xla_gpu_enable_latency_hiding_scheduler=true",
    "--xla_gpu_autotune_level=4",
    "--xla_gpu_enable_triton_gemm=false",
    "--xla_gpu_cudnn_gemm_fusion_level=2",
    "--xla_gpu_exhaustive_tiling_search=true",
)


def make_step(arguments, forms):
    """The `training.Step` with these forms."""
    with gpu_forms(*forms):
        return compile_step(*parts(arguments))


def parts(arguments):
    """(model, variables, images, labels)."""
    return model_and_batch(MODEL, arguments.batch, arguments.image_size, arguments.dtype)


def loss_and_gradients(arguments, forms):
    """Of one training batch."""
    model, variables, images, labels = parts(arguments)
    others = {key: value for key, value in variables.items() if key != "params"}
    with gpu_forms(*forms):
        gradients = jax.jit(jax.value_and_grad(loss_of(model), has_aux=True))
        (loss, _), own = gradients(variables["params"], others, images, labels)
    return jax.device_get((loss, own))


def difference(given, expected):
    """The largest difference of two trees, relative to the largest number of each array."""
    pairs = zip(jax.tree.leaves(given), jax.tree.leaves(expected), strict=True)
    apart = [np.abs(np.float64(ours) - theirs).max() / max(np.abs(theirs).max(), 1e-8) for ours, theirs in pairs]
    return float(np.max(apart))  # nan where a number is


def measure_forms(arguments):
    """One row a form, in the order in which they are tried."""
    end = time.monotonic() + 60 * arguments.minutes
    expected, kept = loss_and_gradients(arguments, ()), ()
    best, rows = make_step(arguments, kept), []
    for form in arguments.forms:
        if time.monotonic() > end:
            print(f"no time is left for {form}", flush=True)
            continue
        # Of the first convolution's forms there can be one.
        others = [own for own in kept if not (form.startswith("blocks_of") and own.startswith("blocks_of"))]
        forms = (*others, form)
        apart = difference(loss_and_gradients(arguments, forms), expected)
        row = {"form": form, "difference": f"{apart:.1e}", "ms without": "", "ms with": "", "gain": "", "kept": "no"}
        if not apart <= TOLERANCES[arguments.dtype]:
            row["kept"] = "no: wrong"
        else:
            step = make_step(arguments, forms)
            seconds = interleave(
                {"without": best.call, "with": step.call}, arguments.rounds, shortest=arguments.seconds
            )
            without, own = (np.array(seconds[name].wall) for name in ("without", "with"))
            gain = median_estimate(without / own)
            row |= {"ms without": f"{1e3 * np.median(without):.2f}", "ms with": f"{1e3 * np.median(own):.2f}"}
            row["gain"] = f"{gain.value - 1:+.1%} ± {gain.margin:.1%}"
            if gain.value - gain.margin > 1:
                kept, best = forms, step
                row["kept"] = "yes"
        rows.append(row)
        print(row, flush=True)
    return rows


def measure_flags(arguments):
    """One row a set of flags, each in a process of its own, and none of them first and last."""
    end = time.monotonic() + 60 * arguments.minutes
    rows = []
    for flags in ("", *FLAGS, ""):
        if time.monotonic() > end:
            print(f"no time is left for {flags or 'no flag'}", flush=True)
            continue
        command = [sys.executable, __file__, "--one_step", "--batch", str(arguments.batch)]
        command += ["--image_size", str(arguments.image_size), "--dtype", arguments.dtype]
        command += ["--seconds", str(arguments.seconds)]
        environment = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        last = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()[-1:]
        ms = f"{json.loads(last[0]):.2f}" if done.returncode == 0 else f"refused: {''.join(last)[:100]}"
        rows.append({"XLA_FLAGS": f"`{flags}`" if flags else "none", "ms a step": ms})
        print(rows[-1], flush=True)
    return rows


def measure_augmentation(arguments):
    """The step with the paper's augmentation, RandAugment in both forms, against the step without any."""
    model, variables, _, labels = parts(arguments)
    images = made_up_images(arguments.batch, arguments.image_size)
    augment = make_augment(CLASSES, **PAPER)
    calls = {"none": make_step(arguments, ()).call}
    for name, chosen in (("RandAugment by all parts", False), ("RandAugment by what was drawn", True)):
        with sorted_operations(chosen):
            calls[name] = compile_step(model, variables, images, labels, augment).call
    seconds = interleave(calls, arguments.rounds, shortest=arguments.seconds)
    without = np.array(seconds["none"].wall)
    return [
        {
            "augmentation": name,
            "ms a step": f"{1e3 * np.median(own.wall):.2f}",
            "over none": str(median_estimate(np.array(own.wall) / without - 1)),
        }
        for name, own in seconds.items()
    ]


def time_one_step(arguments):
    """ms a step, without any form."""
    step = make_step(arguments, ())
    seconds = interleave({"step": step.call}, arguments.rounds, shortest=arguments.seconds)
    return 1e3 * float(np.median(seconds["step"].wall))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--dtype", choices=tuple(TOLERANCES), default="bfloat16")
    parser.add_argument("--forms", nargs="+", choices=tuple(GPU_FORMS), default=list(GPU_FORMS))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.5, help="that a timing lasts, about")
    parser.add_argument("--minutes", type=float, default=10.0, help="after which nothing new is started")
    parser.add_argument("--flags", action="store_true", help="measure XLA's flags in place of forms")
    parser.add_argument("--augmentation", action="store_true", help="measure RandAugment's two forms in place of them")
    parser.add_argument("--one_step", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_step:
        print(json.dumps(time_one_step(arguments)))
        return
    measure = measure_flags if arguments.flags else measure_augmentation if arguments.augmentation else measure_forms
    rows = measure(arguments)
    print(f"\n{machine()}; batch {arguments.batch}, {arguments.image_size} pixels, {arguments.dtype}\n")
    if rows:
        print(markdown_table(rows))


if __name__ == "__main__":
    main()
