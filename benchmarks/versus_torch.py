"""JAX against PyTorch, eager and compiled: images per second of the same models with the same weights.

    python benchmarks/versus_torch.py --models vit_s_stce vit_s_patch vit_s_conv
    python benchmarks/versus_torch.py --models svit_s swin_t cvt_13 --batch 4 --modes inference training

Before anything is timed, both must agree, in float32 and training mode: logits, and the gradient of every parameter.
Then, in one process, the contenders take turns, round after round, each in turn going first, so that whatever else the
machine does meanwhile hits all of them. It still does not hit them alike: PyTorch's threads wait for one another. Where
others compute too, pin the process to one core and count its processor time (--clock processor).

A cell is the median over rounds; a ratio is the median of the rounds' ratios, above 100% where JAX is faster. Images
already lie on the device: loading and augmentation are not measured.

- inference: one batch to logits, evaluation mode, no gradients.
- training: forward, cross-entropy, backward and AdamW in training mode. JAX takes the step of `stce train`, which also
  tells accuracies and the gradient's norm, and skips what is not finite; PyTorch has its fused AdamW.
- embedding: forward and backward pass of the embedding alone; PyTorch's clustering gathers by unfold, scatters by fold.
- Memory an image: of JAX, the temporaries that XLA has planned; of PyTorch, on GPUs alone, the most that was allocated
  beyond what lay there before.
- bfloat16: JAX's models with dtype bfloat16, PyTorch's under autocast. Parameters stay float32 in both; tokens between
  the blocks are bfloat16 in JAX, float32 under autocast.
- Where the head reads the class token alone, JAX's last block computes no more than that. PyTorch's computes all
  tokens, as those of timm and DeiT do, unless --class_token_alone spares it the same.
- With --remat JAX's model computes blocks again in the backward pass, for less memory; PyTorch's keeps what it needs.
- On a GPU float32 products may use TF32 in both; the check does without.
- On CPUs glibc is told to keep what is freed, as `stce` tells it, which spares PyTorch page faults, too.
- With JAX_NUM_CPU_DEVICES=2 in the environment JAX takes two cores for two devices and gives each half of the batch, as
  `stce train` does then, too. PyTorch splits each operation among its threads in any case.
- PyTorch's convolutions run in the memory format channels_last, JAX's own layout, unless told otherwise.
- Swin, MobileViT and DeiT are timm's (pip install timm). The other bodies are in torch_NAME.py. Those that have an
  embedding of their own have no mode embedding, and are there with that embedding alone.
- The check needs maps that BatchNorm can take statistics of: in the last stages of MobileViT and CMT, two images of 32
  pixels leave it two numbers a channel, whose rounding it magnifies beyond any tolerance.
"""

import argparse
import functools
import json
import os
import shlex
import statistics
import sys
from pathlib import Path

import flax
import jax
import numpy as np
import torch
import torch_reference
from contenders import CLOCKS, COMPILED, EAGER, JAX, contenders_of, measure
from measure import machine, markdown_table, median_estimate
from torch_agreement import check_agreement
from training import CLASSES

from stce_jax.errors import ConfigError
from stce_jax.models.factory import create_model, list_models
from stce_jax.platform import freed_memory, jax_settings
from stce_jax.training.mesh import batch_sharding, check_batch_size, make_mesh, replicated

TOLERANCES = (1e-4, 1e-3)  # of logits, absolute; of gradients, relative to the parameter's largest
MODES = ("inference", "training", "embedding")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["vit_s_stce", "vit_s_patch", "vit_s_conv"], metavar="NAME")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image_size", type=int, default=224, help="side in pixels")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--tolerances", type=float, nargs=2, default=TOLERANCES, metavar=("LOGIT", "GRADIENT"))
    parser.add_argument("--rounds", type=int, default=7, help="below 6 there is no interval")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long a contender runs in a round, about")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="processor counts this process's CPU time alone, for a busy machine; pin it to one core (taskset -c 0)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument("--memory_format", choices=("channels_last", "contiguous"), default="channels_last")
    parser.add_argument(
        "--class_token_alone", action="store_true", help="PyTorch's last block computes the class token alone, as JAX's"
    )
    parser.add_argument("--remat", action="store_true", help="JAX's blocks are computed again in the backward pass")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="time torch.compile too")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write every round's measurement there")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.models) - set(list_models()))
    if unknown:
        parser.error(f"there is no model {', '.join(unknown)}; the models are {', '.join(list_models())}")
    if "embedding" in arguments.modes:
        without = [name for name in arguments.models if not torch_reference.has_embedding(name)]
        if without:
            parser.error(f"{', '.join(without)}: no mode embedding; give --modes inference training")
    return arguments


def choose_device(wanted):
    """Where both frameworks will run, "cpu" or "cuda"; call before anything touches JAX's devices."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves PyTorch its share of a GPU's memory
    if wanted == "cpu" or not torch.cuda.is_available():
        jax.config.update("jax_platforms", "cpu")
    freed_memory.configure_jax()
    both_on_gpu = torch.cuda.is_available() and jax.default_backend() == "gpu"
    if wanted == "gpu" and not both_on_gpu:
        sys.exit("--device gpu: PyTorch and JAX must both see the GPU, and at least one of them does not")
    return "cuda" if both_on_gpu else "cpu"


def compare(name, device, arguments):
    """Checks, then measures one model; returns one dict per mode."""
    random = np.random.default_rng(0)
    size = arguments.image_size
    images = random.normal(size=(arguments.batch, size, size, 3)).astype(np.float32)
    labels = random.integers(CLASSES, size=arguments.batch)
    mesh = make_mesh()
    jax_batch = jax.device_put((images, labels.astype(np.int32)), batch_sharding(mesh))
    layout = torch.channels_last if arguments.memory_format == "channels_last" else torch.contiguous_format
    torch_images = torch.from_numpy(images).permute(0, 3, 1, 2).to(device).contiguous(memory_format=layout)
    torch_batch = torch_images, torch.from_numpy(labels).to(device)

    still = torch_reference.undrawn(name)  # the PyTorch models draw nothing at random
    reference = torch_reference.build(name, CLASSES, size, class_token_alone=arguments.class_token_alone, **still)
    model = create_model(name, num_classes=CLASSES, image_size=size, **still)
    options = jax_settings.options_to_run_once(jax.default_backend())
    init = jax.jit(functools.partial(model.init, train=False), compiler_options=options)
    variables = init(jax.random.key(0), jax_batch[0][:1])
    variables = {key: variables[key] for key in ("params", "batch_stats") if key in variables}
    variables = jax.device_put(variables, replicated(mesh))
    torch_reference.copy_parameters(reference, jax.device_get(variables))
    reference = reference.to(device, memory_format=layout)
    check_agreement(name, model, variables, reference, jax_batch, torch_batch, arguments.tolerances)

    model = create_model(
        name, num_classes=CLASSES, image_size=size, dtype=arguments.dtype, remat=arguments.remat, **still
    )
    low_precision = arguments.dtype == "bfloat16"
    autocast = functools.partial(torch.autocast, device, torch.bfloat16, enabled=low_precision)
    results = []
    for mode in arguments.modes:
        contenders, temporary = contenders_of(
            mode, (model, variables, reference), (jax_batch, torch_batch), autocast, arguments.compile
        )
        memory = {JAX: temporary}
        speeds = measure(contenders, arguments, memory)
        memory = {name: size / arguments.batch / 1e6 for name, size in memory.items()}
        results.append({"model": name, "mode": mode, "images_per_second": speeds, "megabytes_an_image": memory})
        print(f"  {row(results[-1])}", file=sys.stderr)
    return results


def row(result):
    """A result as one row of the table."""
    speeds = result["images_per_second"]
    cells = {"model": result["model"], "mode": result["mode"]}
    for name in (JAX, EAGER, COMPILED):
        cells[f"{name}, images/s"] = f"{statistics.median(speeds[name]):.1f}" if name in speeds else "-"
    for name in (EAGER, COMPILED):
        ratios = [ours / theirs for ours, theirs in zip(speeds[JAX], speeds.get(name, []), strict=False)]
        interval = median_estimate(ratios) if len(ratios) >= 6 else None
        cells[f"{JAX} / {name}"] = str(interval or f"{statistics.median(ratios):.1%}") if ratios else "-"
    for name, size in result["megabytes_an_image"].items():
        cells[f"{name}, MB/image"] = f"{size:.1f}"
    return cells


def main():
    arguments = parse_arguments()
    freed_memory.keep()
    device = choose_device(arguments.device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(cores)
    try:
        check_batch_size(arguments.batch, make_mesh())
    except ConfigError as error:
        sys.exit(str(error))
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    try:
        results = [result for name in arguments.models for result in compare(name, device, arguments)]
    except (ImportError, NotImplementedError) as error:  # of the PyTorch models
        sys.exit(str(error))

    versions = {"jax": jax.__version__, "flax": flax.__version__, "torch": torch.__version__}
    command = shlex.join(["python", f"benchmarks/{Path(__file__).name}", *sys.argv[1:]])
    print(markdown_table([row(result) for result in results]))
    print()
    print(f"{machine()}; {cores} cores used, {jax.device_count()} devices in JAX;")
    print(f"flax {versions['flax']}, torch {versions['torch']};")
    print(f"batch {arguments.batch}, {arguments.image_size} pixels, {arguments.dtype},")
    print(f"median of {arguments.rounds} rounds, {arguments.clock} time, load before {load}. `{command}`")
    if arguments.json:
        record = {
            "command": command,
            "machine": machine(),
            "load_before": load,
            "jax_devices": jax.device_count(),
            "versions": versions,
            "arguments": vars(arguments),
        }
        arguments.json.write_text(json.dumps(record | {"results": results}, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
