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
    from stce_jax.processes import peers as processes
    from stce_jax.processes.stopping import interrupted_by_signal
    from stce_jax.verbs.evaluate import evaluate

    names = ("data_dir", "dataset", "classes", "split", "output", "reduction")
    options = {name: getattr(arguments, name) for name in names}
    processes.start()
    # A process that waits for others outside of Python hears no signal.
    hearing = interrupted_by_signal(arguments.exit_process) if processes.several() else contextlib.nullcontext()
    with hearing, processes.together():
        common.register_modules(arguments)
        result = evaluate(**common.of_run(arguments), **options)
    first = processes.is_main()
    processes.leave()
    if not first:
        return
    terminal.say(
        f"step {result['step']}  epoch {result['epoch']:.2f}  {result['images']} images  loss {result['loss']:.4f}  "
        f"top-1 {100 * result['top1']:.2f}%  top-5 {100 * result['top5']:.2f}%"
    )
    if result["holdout"]:
        terminal.say(f"split {result['split']}: {SAID[result['split']]}")
    terminal.say(f"calibration error {100 * result['calibration_error']:.2f}%, in {len(result['reliability'])} bins")
    if result["metrics"]:
        terminal.say("  ".join(f"{name} {value:.4g}" for name, value in result["metrics"].items()))
    if arguments.per_class:
        _print_per_class(result)
    if arguments.confusion:
        from stce_jax.commands import confusion

        terminal.say("", *confusion.lines_of(result["confusion"], result["class_names"]))
    if arguments.output:
        files = "evaluation.json, predictions.npz, confusion.csv, confusion.png, reliability.png"
        terminal.say(f"{arguments.output}: {files}")


def _print_per_class(result: Mapping[str, Any]) -> None:
    rows = [["class", "images", "top-1"]]
    for name, scores in zip(result["class_names"], result["per_class"].values(), strict=True):
        rows.append([name, str(scores["images"]), f"{100 * scores['top1']:.2f}%" if scores["images"] else "-"])
    terminal.say("", "per class", *tables.aligned(rows, right=(1, 2)))
    terminal.say(f"balanced accuracy {100 * result['balanced_accuracy']:.2f}%, the mean of these")
