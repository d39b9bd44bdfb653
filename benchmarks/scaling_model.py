"""What a training step computes and sends on 8 to 256 chips: the tables of docs/scaling.md, computed, not measured.

    python benchmarks/scaling_model.py                  # all tables; --utilisation 0.4 for another assumption
    JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=8 python benchmarks/scaling_model.py --collectives

The second command compiles the real train step for eight CPU devices, runs nothing, and counts what the devices would
send each other: that holds the formulas against the program. With `--topology v5e:2x4` it compiles for eight TPUs,
which needs libtpu (`pip install "jax[tpu]"`) but no TPU.
"""

import argparse
import collections
import math
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from collectives import Program
from jax.experimental import topologies
from measure import markdown_table

from stce_jax.data.catalog import IMAGENET_MEAN, IMAGENET_STD
from stce_jax.errors import ConfigError
from stce_jax.models.factory import model_options
from stce_jax.recipe.optimizers import peak_learning_rate
from stce_jax.training import assemble as runs
from stce_jax.training.mesh import batch_sharding, check_batch_size, make_mesh, replicated, sharded_shapes
from stce_jax.training.optimization import build_optimizer
from stce_jax.training.state import abstract_state
from stce_jax.training.step import make_train_step
from stce_jax.verbs.summary import summarize
from stce_jax.workdir import config as configuration

CHIPS = (8, 16, 32, 64, 128, 256)
GLOBAL_BATCHES, A_CHIP = (128, 1024, 4096), 64
IMAGES, EPOCHS, WARMUP_EPOCHS, LEARNING_RATE, EMA_DECAY = 130_000, 300, 5, 1e-3, 0.99996  # ImageNet100, the recipe
FLOAT = 4  # bytes
DECODED = 430  # images/s and core, see docs/measured.md


class Chip(NamedTuple):
    """What makers say of a chip, and a guess at latency.

    Attributes:
      peak: FLOP/s in bfloat16, dense.
      node: chips that the faster network joins.
      inside, across: bytes/s in one direction that a ring passes from chip to chip, in a node and between nodes.
      latency: seconds for a message from one chip to the next (assumed).
      torus: an all-reduce runs along the two axes of a torus; otherwise along a ring or a tree.
    """

    peak: float
    node: int
    inside: float
    across: float
    latency: float
    torus: bool = False


MACHINES = {
    "H100/H200, eight 400 Gb/s adapters a node": Chip(989e12, 8, 450e9, 8 * 50e9, 5e-6),
    "H100/H200, one 400 Gb/s adapter a node": Chip(989e12, 8, 450e9, 50e9, 5e-6),
    "TPU v5e": Chip(197e12, 256, 100e9, 100e9, 1e-6, torus=True),
    "TPU v4": Chip(275e12, 256, 150e9, 150e9, 1e-6, torus=True),
}


def compute_seconds(flops, images, chips, chip, utilisation):
    """Seconds that `chips` compute for a batch: flops is an image's, forward and backward; utilisation of the peak."""
    return images / chips * flops / (chip.peak * utilisation)


def all_reduce_seconds(size, chips, chip):
    """Seconds to add up `size` bytes over `chips`, of the ways there are the faster one.

    Ring: 2 (n - 1) / n of the bytes leave each chip, in 2 (n - 1) messages, one after the other. Trees: twice the
    bytes, in 2 log2(n). Torus of a x b chips: the ring's bytes, in 2 (a - 1) + 2 (b - 1).
    """
    bandwidth = chip.inside if chips <= chip.node else chip.across
    ring = 2 * (chips - 1) / chips * size / bandwidth
    if chip.torus:
        rows = 2 ** (int(math.log2(chips)) // 2)
        return ring + 2 * (rows + chips // rows - 2) * chip.latency
    tree = 2 * size / bandwidth + 2 * math.log2(chips) * chip.latency
    return min(ring + 2 * (chips - 1) * chip.latency, tree)


def batch_norm_seconds(channels, chips, chip):
    """Seconds of BatchNorm's all-reduces: two numbers a channel, once forward and once backward, for each BatchNorm."""
    return sum(2 * all_reduce_seconds(2 * FLOAT * width, chips, chip) for width in channels)


def sent_bytes(parameters, chips, parts):
    """Bytes that leave a chip in a step if parameters are split over `parts` of the chips.

    Gathering them forward and backward and reduce-scattering gradients over the parts, then the all-reduce of each part
    with its copies.
    """
    copies, size = chips // parts, FLOAT * parameters
    return 3 * (parts - 1) / parts * size + 2 * (copies - 1) / copies * size / parts


def state_bytes(parameters, parts):
    """Bytes a chip: parameters, AdamW's two moments, the moving average, and gradients."""
    return 5 * FLOAT * parameters / parts


def step_rows(model, chip, utilisation):
    rows = []
    for chips in CHIPS:
        gradients = all_reduce_seconds(FLOAT * model["parameters"], chips, chip)
        statistics = batch_norm_seconds(model["channels"], chips, chip)
        row = {"chips": chips, "gradients, ms": f"{1e3 * gradients:.2f}", "BatchNorm, ms": f"{1e3 * statistics:.2f}"}
        batches = {f"batch {batch:,}": batch for batch in GLOBAL_BATCHES} | {f"{A_CHIP} a chip": A_CHIP * chips}
        for name, batch in batches.items():
            if batch % chips:
                row[name] = "refused"
                continue
            computed = compute_seconds(model["flops"], batch, chips, chip, utilisation)
            hidden = max(0.0, gradients - 2 / 3 * computed) + statistics
            shares = [sent / (sent + computed) for sent in (gradients + statistics, hidden)]
            row[name] = f"{1e3 * computed:.2f}: {shares[0]:.0%}, {shares[1]:.0%}"
        rows.append(row)
    return rows


def memory_rows(models, chips):
    return [
        {"fsdp_devices": parts}
        | {f"{name}: sent, MB": f"{sent_bytes(model['parameters'], chips, parts) / 1e6:,.0f}" for name, model in models}
        | {f"{name}: held, MB": f"{state_bytes(model['parameters'], parts) / 1e6:,.0f}" for name, model in models}
        for parts in (1, 2, 4, 8, 64)
    ]


def feeding_rows(model, utilisation):
    rows = []
    for name, chip in list(MACHINES.items())[1:]:
        speeds = [chips * chip.peak * utilisation / model["flops"] for chips in CHIPS]
        cells = {str(n): f"{speed:,.0f}: {speed / DECODED:,.0f}" for n, speed in zip(CHIPS, speeds, strict=True)}
        rows.append({"chips": name.split(",")[0]} | cells)
    return rows


def recipe_rows():
    rows = []
    for batch in (128, 512, 1024, 4096):
        steps = IMAGES / batch
        rows.append(
            {
                "batch": f"{batch:,}",
                "steps an epoch": f"{steps:,.1f}",
                "in all": f"{round(EPOCHS * steps):,}",
                "of warm-up": f"{round(WARMUP_EPOCHS * steps):,}",
                "1e-3, `linear`": f"{peak_learning_rate(LEARNING_RATE, 'linear', batch):.2g}",
                "average's memory, epochs": f"{1 / (1 - EMA_DECAY) / steps:,.1f}",
                "decay with the same memory": f"{EMA_DECAY ** (batch / GLOBAL_BATCHES[0]):.5f}",
            }
        )
    return rows


def made_up_devices(topology):
    """Eight devices to compile for: this machine's, or those of TPUs that nobody needs to have, such as "v5e:2x4"."""
    if not topology:
        return jax.devices()
    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices


def compiled_step(fsdp_devices, devices):
    """(the compiled training step of `vit_s_stce`, shapes of its state)."""
    config = configuration.load_config("stce_vit_s", ["--config.augment.rand_augment=", "--config.augment.erase=0"])
    dataset = SimpleNamespace(train=range(IMAGES), class_names=range(100), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    model = runs.build_model(config, 100)
    _, optimizer = build_optimizer(config, runs.build_timetable(config, dataset))
    mesh = make_mesh(fsdp_devices, devices)
    state = sharded_shapes(abstract_state(model, optimizer, image_size=config.image_size, with_ema=True), mesh)
    own = {"ema_decay": EMA_DECAY, "state": state, "mesh": mesh}
    step = make_train_step(model, optimizer, runs.build_augment(config, dataset), **own)
    batch, size = config.batch_size, config.image_size
    batch = {
        "image": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8, sharding=batch_sharding(mesh)),
        "label": jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=batch_sharding(mesh)),
    }
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=replicated(mesh))
    return step.lower(state, batch, key).compile(), state


def collective_rows(fsdp_devices, devices):
    """What the devices send each other in a step of `vit_s_stce`, one row for each kind of collective."""
    compiled, _ = compiled_step(fsdp_devices, devices)
    program = Program(compiled.as_text())
    number, sizes = collections.Counter(), collections.Counter()
    for kind, size, _ in program.collectives():
        number[kind] += 1
        sizes[kind] += size
    reductions = [(made, index) for made in program.of_kind("all-reduce") for index in range(len(made.results))]
    parts = sum(made.results[index][1] for made, index in reductions if program.is_scattered(made, index))
    notes = {
        "all-gather": f"{program.most_gathered():,} at a time",
        "all-reduce": f"{parts:,} read in parts alone" if parts else "",
    }
    return [
        {
            "fsdp_devices": fsdp_devices,
            "operation": kind,
            "number": number[kind],
            "result, bytes": f"{sizes[kind]:,}",
            "of these, bytes": notes.get(kind, ""),
        }
        for kind in sorted(number)
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utilisation", type=float, default=0.3, help="share of the peak that is reached (0.3)")
    parser.add_argument("--collectives", action="store_true", help="compile for the devices there are, and count")
    parser.add_argument("--topology", help='TPUs to compile for in place of devices, such as "v5e:2x4" (libtpu)')
    options = parser.parse_args()
    if options.collectives:
        devices = made_up_devices(options.topology)
        print(markdown_table([row for parts in (1, 4, 8) for row in collective_rows(parts, devices)]))
        return
    models = {}
    for name in ("vit_s_stce", "vit_b_stce"):
        counted = summarize(name)[0]
        models[name] = {
            "parameters": counted["parameters"],
            "flops": 3 * 2 * counted["multiply_adds"],  # backward costs twice as much as forward
            "channels": model_options(name)["stem_widths"],
        }
    rows = [
        {
            "model": name,
            "P": f"{model['parameters']:,}",
            "gradients 4P, MB": f"{FLOAT * model['parameters'] / 1e6:.1f}",
            "F, GFLOP": f"{model['flops'] / 1e9:.1f}",
            "BatchNorms": len(model["channels"]),
            "their all-reduces, bytes": f"{2 * FLOAT * sum(model['channels']):,}",
        }
        for name, model in models.items()
    ]
    print(markdown_table(rows))
    for name, model in models.items():
        for machine, chip in MACHINES.items():
            print(f"\n{name}, {machine}, at {options.utilisation:.0%} of its peak\n")
            print(markdown_table(step_rows(model, chip, options.utilisation)))
    print("\nfsdp on 64 chips\n")
    print(markdown_table(memory_rows(models.items(), 64)))
    print("\nimages/s: cores that decode, vit_s_stce\n")
    print(markdown_table(feeding_rows(models["vit_s_stce"], options.utilisation)))
    print("\nthe recipe\n")
    print(markdown_table(recipe_rows()))
    try:
        check_batch_size(GLOBAL_BATCHES[0], SimpleNamespace(size=CHIPS[-1]))
    except ConfigError as error:
        print(f"\n{CHIPS[-1]} chips: {error}")


if __name__ == "__main__":
    main()
