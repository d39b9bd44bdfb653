"""What `remat` saves of a training step's memory, and what it costs of its time: the same step with and without it.

    python benchmarks/remat_cost.py                             one model of each body, 8 images
    python benchmarks/remat_cost.py --models vit_s_stce --batch 32 --write

Both steps are timed in turn on a batch that lies on the device; memory is XLA's plan of what a step needs beside its
arguments. `--write` puts the table into docs/performance.md.
"""

import argparse

import numpy as np
from documents import write_section
from measure import interleave, median_estimate
from step_table import step_table
from training import compile_step, model_and_batch

MODELS = ("vit_s_patch", "vit_s_stce", "vit_s_conv", "deit_s", "svit_s", "swin_t", "cvt_13", "focal_t", "cmt_s")
MODELS += ("mobilevit_s", "dat_t")


def measured(name, batch, rounds):
    """A row of the table."""
    steps = {remat: compile_step(*model_and_batch(name, batch, 224, "float32", remat=remat)) for remat in (False, True)}
    seconds = interleave({remat: step.call for remat, step in steps.items()}, rounds)
    plain, again = (np.array(seconds[remat].wall) for remat in (False, True))
    before, after = (steps[remat].temporary_bytes / batch / 1e6 for remat in (False, True))
    return {
        "model": f"`{name}`",
        "kept, MB an image": f"{before:.0f}",
        "with remat": f"{after:.0f}",
        "a step, ms": f"{1e3 * np.median(plain):,.0f}",
        "time with remat, of that without": str(median_estimate(again / plain)),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="names of models (one of each body)")
    parser.add_argument("--batch", type=int, default=8, help="images of a step (8)")
    parser.add_argument("--rounds", type=int, default=7, help="timings of each step (7)")
    parser.add_argument("--write", action="store_true", help="write the table into docs/performance.md")
    options = parser.parse_args()
    text = step_table(options.models, options.batch, options.rounds, measured)
    print(text)
    if options.write:
        write_section("remat", text)


if __name__ == "__main__":
    main()
