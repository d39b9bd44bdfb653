"""Top-1 on the digits' test images for the three embeddings, several seeds each.

    python benchmarks/digits_accuracy.py --seeds 0 1 2

Runs `stce train` in processes of its own, one after another, and prints a Markdown table: mean and every seed's value
of the last epoch, and the median wall time of a run from start to end (compilation included).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import machine, markdown_table

EMBEDDINGS = ("patch", "conv", "stce")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--overrides", nargs="*", default=[], help="further words for stce train")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for embedding in EMBEDDINGS:
            results = [train(embedding, seed, Path(scratch), arguments.overrides) for seed in arguments.seeds]
            top1 = [100 * accuracy for accuracy, _ in results]
            rows.append(
                {
                    "embedding": embedding,
                    "top-1 %, mean": f"{statistics.mean(top1):.2f}",
                    "each seed": ", ".join(f"{value:.2f}" for value in top1),
                    "seconds a run, median": f"{statistics.median(seconds for _, seconds in results):.0f}",
                }
            )
            print(rows[-1], file=sys.stderr, flush=True)
    print(machine())
    print(markdown_table(rows))


def train(embedding, seed, scratch, overrides):
    """(last epoch's top-1 as a fraction, seconds) of one run."""
    workdir = scratch / f"{embedding}_{seed}"
    words = (f"--config=digits:{embedding}", f"--workdir={workdir}", f"--config.seed={seed}", *overrides)
    start = time.monotonic()
    subprocess.run([sys.executable, "-P", "-m", "stce_jax", "train", *words], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - start
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["top1"] for line in lines if line["split"] == "eval"][-1], seconds


if __name__ == "__main__":
    main()
