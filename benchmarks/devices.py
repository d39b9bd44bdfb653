"""A CPU as one device and as a device a core: the same model, its batch on one or over all of them, in turn.

Both share a heap, as several devices do; a process with one device has a faster way, see kept_memory.py.

python benchmarks/devices.py                                            the paper's models, training and inference
python benchmarks/devices.py --models swin_t cmt_s --batch_sizes 8 --what training --rounds 9
"""

import argparse
import os

import jax
from measure import in_turn, machine, markdown_table, median_estimate

from stce_jax.analysis.timing import contenders
from stce_jax.analysis.timing.model_specs import read_specs
from stce_jax.platform import freed_memory
from stce_jax.training.mesh import make_mesh

MODELS = [f"vit_{size}_{embedding}" for size in ("ti", "s") for embedding in ("patch", "conv", "stce")]


def images_per_second(spec, batch_size, what, meshes, *, rounds, seconds):
    """{name: [images/s of each round]} of a model on each of the meshes."""
    rivals = {}
    for name, mesh in meshes.items():
        rival = rivals[name] = contenders.Contender(spec, {}, None, batch_size, what)
        contenders.prepare(rival, mesh, seconds=seconds, accumulate=1)
    for name in in_turn(rivals, rounds):
        contenders.take_turn(rivals[name])
    return {name: rival.rates for name, rival in rivals.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, help="as `stce benchmark` takes them")
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--what", nargs="+", default=["training", "inference"], choices=["training", "inference"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="that a turn lasts at least")
    options = parser.parse_args()
    count = len(os.sched_getaffinity(0))
    freed_memory.keep(count)
    jax.config.update("jax_num_cpu_devices", count)
    meshes = {"one": make_mesh(devices=jax.devices()[:1]), "all": make_mesh()}
    print(machine())
    rows = []
    for spec in read_specs(options.models):
        for batch_size in options.batch_sizes:
            for what in options.what:
                rates = images_per_second(
                    spec, batch_size, what, meshes, rounds=options.rounds, seconds=options.seconds
                )
                ratio = median_estimate(all / one for all, one in zip(rates["all"], rates["one"], strict=True))
                rows.append(
                    {"model": spec.label, "batch": batch_size, "what": what, f"{count} devices over one": ratio}
                )
                print(*rows[-1].values(), flush=True)
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
