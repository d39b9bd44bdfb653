"""What training takes of a device's memory, by XLA's account of the compiled step: nothing runs.

    python benchmarks/training_memory.py                              vit_s_stce, 1,000 classes, 224 to 1,024 pixels
    python benchmarks/training_memory.py --model=vit_b_stce --sizes 224

The step is the one that `stce train` makes of the shipped config `stce_vit_s`, without RandAugment and erasing, with a
copy of the state for the moving average. State is parameters, statistics, both moments and the average; temporary is
all else that the step needs at a time: activations, gradients, what is gathered of a batch. A step needs the sum. XLA's
plan is for this machine's processor, in float32 unless --dtype says otherwise; a GPU's fused attention needs less.
"""

import argparse
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from measure import machine, markdown_table

from stce_jax.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from stce_jax.training import assemble as runs
from stce_jax.training import optimization
from stce_jax.training.mesh import batch_sharding, make_mesh, replicated
from stce_jax.training.objective import build_objective
from stce_jax.training.stepping import build_stepping
from stce_jax.workdir import config as configuration

AGAIN = ["--config.model.body.vit.remat=True"]
ONE_AT_A_TIME = ["--config.accumulate={batch}"]
WAYS = {
    "as it is": [],
    "remat": AGAIN,
    "remat, scan_layers": [*AGAIN, "--config.model.body.vit.scan_layers=True"],
    "accumulate": ONE_AT_A_TIME,
    "remat, accumulate": [*AGAIN, *ONE_AT_A_TIME],
}
MEGABYTE = 1e6
# Less of LLVM's work, which changes no buffer.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def planned_bytes(words, classes):
    """(bytes of the state, temporary bytes) of a training step of the config `stce_vit_s` with these overrides."""
    config = configuration.load_config("stce_vit_s", words)
    dataset = SimpleNamespace(train=range(10**6), class_names=range(classes), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    mesh, model = make_mesh(1, jax.devices()[:1]), runs.build_model(config, classes)
    timetable, augment = runs.build_timetable(config, dataset), runs.build_augment(config, dataset)
    rules = optimization.parameter_rules(config, model)
    stepping = build_stepping(config, model, rules, timetable, augment, build_objective(config), mesh)
    batch, size, split = config.batch_size, config.image_size, batch_sharding(mesh)
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8, sharding=split)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=split)
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=replicated(mesh))
    step = stepping.make_step(model)
    lowered = step.lower(stepping.state_shapes, {"image": images, "label": labels}, key)
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(stepping.state_shapes))
    return state, lowered.compile(QUICKLY).memory_analysis().temp_size_in_bytes


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_s_stce")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 512, 1024], help="sides of images in pixels")
    parser.add_argument("--batch", type=int, default=8, help="images of a step (8)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="what is saved (all)")
    parser.add_argument("--dtype", default="float32", help="or bfloat16")
    options = parser.parse_args()
    rows = []
    for size in options.sizes:
        for way in options.ways:
            words = [f"--config.model.name={options.model}", f"--config.model.dtype={options.dtype}"]
            words += [f"--config.image_size={size}", f"--config.batch_size={options.batch}"]
            words += ["--config.augment.rand_augment=", "--config.augment.erase=0"]
            words += [word.format(batch=options.batch) for word in WAYS[way]]
            state, temporary = planned_bytes(words, options.classes)
            row = {"pixels": f"{size:,}", "saved by": way, "state, MB": f"{state / MEGABYTE:,.0f}"}
            row |= {"temporary, MB": f"{temporary / MEGABYTE:,.0f}"}
            row |= {"of these, an image, MB": f"{temporary / options.batch / MEGABYTE:,.0f}"}
            rows.append(row | {"in all, MB": f"{(state + temporary) / MEGABYTE:,.0f}"})
            print(rows[-1], file=sys.stderr, flush=True)
    print(f"{machine()}; {options.model}, {options.classes:,} classes, {options.dtype}, {options.batch} images\n")
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
