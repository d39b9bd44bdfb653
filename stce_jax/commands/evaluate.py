"""The words of `stce evaluate`."""

import argparse
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from stce_jax.commands import common, tables
from stce_jax.platform import terminal

HELP = "measure a run's accuracy on its validation images, or on others of the same classes"
EXAMPLES = """
  stce evaluate --workdir=runs/digits
  stce evaluate --workdir=runs/digits --checkpoint=best --per_class --confusion
  stce evaluate --workdir=runs/digits --output=runs/digits/evaluation
  stce evaluate --workdir=runs/pets --dataset=folder --data_dir=other_pets
  stce evaluate --workdir=runs/pets --reduction=topk:keep_rate=0.7"""
SPLIT = "the images (default: val); holdout: the part that a run with config.holdout was evaluated on in training"
SAID = {  # what a split is of a run with config.holdout
    "val": "the test images; in training the run was evaluated on --split=holdout",
    "train": "the training images, without those that were held out",
    "holdout": "the training images that were held out, on which the run was evaluated in training",
}


def add_arguments(verb: argparse.ArgumentParser) -> None:
    common.add_run(verb)
    common.add_reduction(verb)
    common.add_data_dir(verb, "where the images are, if not where the run was trained from")
    verb.add_argument("--dataset", default="", help="another dataset with the same classes: folder, imagenet100, ...")
    verb.add_argument("--classes", default="", help="that dataset's list of classes, or name")
    verb.add_argument("--split", default="val", choices=("val", "train", "holdout"), help=SPLIT)
    verb.add_argument("--output", default="", metavar="DIR", help="write scores, logits of every image, and pictures")
    verb.add_argument("--per_class", action="store_true", help="print the accuracy of each class")
    verb.add_argument("--confusion", action="store_true", help="print which classes are taken for which")


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    from stce_jax.data.catalog import check_single_label
    from stce_jax.processes import peers as processes
    from stce_jax.processes.stopping import interrupted_by_signal
    from stce_jax.verbs.evaluate import evaluate
    from stce_jax.workdir.layout import read_config
    from stce_jax.workdir.score import said

    names = ("data_dir", "dataset", "classes", "split", "output", "reduction")
    options = {name: getattr(arguments, name) for name in names}
    processes.start()
    # A process that waits for others outside of Python hears no signal.
    hearing = interrupted_by_signal(arguments.exit_process) if processes.several() else contextlib.nullcontext()
    with hearing, processes.together():
        common.register_modules(arguments)
        if arguments.confusion:
            check_single_label(read_config(arguments.workdir).task, "--confusion counts classes", "leave it out")
        result = evaluate(**common.of_run(arguments), **options)
    first = processes.is_main()
    processes.leave()
    if not first:
        return
    terminal.say(
        f"step {result['step']}  epoch {result['epoch']:.2f}  {result['images']} images  loss {result['loss']:.4f}  "
        f"{said(result)}"
    )
    if result["holdout"]:
        terminal.say(f"split {result['split']}: {SAID[result['split']]}")
    if "reliability" in result:
        error = 100 * result["calibration_error"]
        terminal.say(f"calibration error {error:.2f}%, in {len(result['reliability'])} bins")
    if result["metrics"]:
        terminal.say("  ".join(f"{name} {value:.4g}" for name, value in result["metrics"].items()))
    if arguments.per_class:
        _print_per_class(result)
    if arguments.confusion:
        from stce_jax.commands import confusion

        terminal.say("", *confusion.lines_of(result["confusion"], result["class_names"]))
    if arguments.output:
        pictures = ", confusion.csv, confusion.png, reliability.png" if "confusion" in result else ""
        terminal.say(f"{arguments.output}: evaluation.json, predictions.npz{pictures}")


def _print_per_class(result: Mapping[str, Any]) -> None:
    name, title = ("top1", "top-1") if "top1" in result else ("ap", "average precision")
    rows = [["class", "images", title]]
    for class_name, scores in zip(result["class_names"], result["per_class"].values(), strict=True):
        known = f"{100 * scores[name]:.2f}%" if scores["images"] else "-"
        rows.append([class_name, str(scores["images"]), known])
    terminal.say("", "per class", *tables.aligned(rows, right=(1, 2)))
    if "balanced_accuracy" in result:
        terminal.say(f"balanced accuracy {100 * result['balanced_accuracy']:.2f}%, the mean of these")
