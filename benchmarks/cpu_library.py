"""What oneDNN saves on a CPU: the same training step by XLA's own products and convolutions and by oneDNN's.

    python benchmarks/cpu_library.py                                 8 images
    python benchmarks/cpu_library.py --models swin_t cvt_13 --write

Both steps are timed in turn, on one CPU device and a batch that lies there. `--write` puts the table into
docs/performance.md.
"""

import argparse

import numpy as np
from documents import write_section
from measure import interleave, median_estimate
from step_table import step_table
from training import compile_step, model_and_batch

from stce_jax.platform.cpu_library import ENOUGH_WORK, chosen_for

MODELS = ("vit_s_patch", "vit_s_stce", "vit_s_conv", "vit_ti_patch", "vit_ti_stce", "vit_ti_conv")


def compiled(name, batch, work):
    """The training step of a model in a run that has so much to compute."""
    with chosen_for(work) as by_onednn:
        if work and not by_onednn:
            raise SystemExit("oneDNN does not compute here: see stce_jax/platform/cpu_library.py")
        return compile_step(*model_and_batch(name, batch, 224, "float32"))


def measured(name, batch, rounds):
    """A row of the table."""
    steps = {work: compiled(name, batch, work) for work in (0.0, ENOUGH_WORK)}
    seconds = interleave({work: step.call for work, step in steps.items()}, rounds)
    own, onednn = (np.array(timed.wall) for timed in seconds.values())
    compiling = [f"{step.compile_seconds:.1f}" for step in steps.values()]
    memory = [f"{step.temporary_bytes / batch / 1e6:.0f}" for step in steps.values()]
    return {
        "model": f"`{name}`",
        "XLA's own, ms": f"{1e3 * np.median(own):,.0f}",
        "oneDNN, ms": f"{1e3 * np.median(onednn):,.0f}",
        "XLA's own / oneDNN": str(median_estimate(own / onednn)),
        "compiling, s": ", ".join(compiling),
        "MB an image": ", ".join(memory),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="names of models")
    parser.add_argument("--batch", type=int, default=8, help="images of a step (8)")
    parser.add_argument("--rounds", type=int, default=7, help="timings of each step (7)")
    parser.add_argument("--write", action="store_true", help="write the table into docs/performance.md")
    options = parser.parse_args()
    text = step_table(options.models, options.batch, options.rounds, measured)
    print(text)
    if options.write:
        write_section("onednn", text)


if __name__ == "__main__":
    main()
