"""The words of `stce probe`."""

import argparse
from collections.abc import Sequence
from typing import Any

from stce_jax.commands import common
from stce_jax.platform import terminal

HELP = "fit a linear classifier to what a run's frozen model makes of images, also of other classes"
EXAMPLES = """
  stce probe --workdir=runs/pretrained --data_dir=pets
  stce probe --workdir=runs/pretrained --data_dir=pets --output=pets_probe.npz"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    common.add_run(verb)
    common.add_data_dir(verb, "train/<class>/ and val/<class>/, of any classes; by default the run's own images")
    verb.add_argument("--dataset", default="", help="of that data_dir: folder (the default), imagenet100, ...")
    verb.add_argument("--classes", default="", help="that dataset's list of classes, or name")
    verb.add_argument(
        "--output", default="", metavar="FILE", help="write kernel, bias and class_ids of the probe (.npz)"
    )


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    import numpy as np

    from stce_jax.verbs.probe import probe

    common.register_modules(arguments)
    options = {name: getattr(arguments, name) for name in ("data_dir", "dataset", "classes")}
    found: dict[str, Any] = probe(**common.of_run(arguments), **options)
    train, test = found["images"]
    best = found["held_out"][found["strength"]]
    terminal.say(
        f"step {found['step']}  {train} training images, {len(found['class_ids'])} classes, {found['features']} "
        f"features  C {found['strength']:g}, top-1 {100 * best:.2f}% of what was held out to choose it"
    )
    low, high = (100 * end for end in found["interval"])
    terminal.say(f"{test} test images  top-1 {100 * found['top1']:.2f}% [{low:.2f}, {high:.2f}]")
    if arguments.output:
        with common.output_file(arguments.output) as file:
            np.savez(file, kernel=found["kernel"], bias=found["bias"], class_ids=np.array(found["class_ids"]))
