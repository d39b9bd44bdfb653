"""The words of `stce evaluate`."""

import argparse
import contextlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from stce_jax.commands import common, tables
from stce_jax.platform import terminal

HELP = "measure a run's accuracy on its validation images, or on others of the same classes"
EXAMPLES = """
  stce evaluate --workdir=runs/digits
  stce evaluate --workdir=runs/digits --checkpoint=best --by=class --confusion
  stce evaluate --workdir=runs/digits --output=runs/digits/evaluation
  stce evaluate --workdir=runs/pets --dataset=folder --data_dir=other_pets
  stce evaluate --workdir=runs/pets --reduction=topk:keep_rate=0.7
  stce evaluate --workdir=runs/pets --tta=flip,crops
  stce evaluate --workdir=runs/pets --by=cameras.csv:camera"""
SPLIT = "the images (default: val); holdout: the part that a run with config.holdout was evaluated on in training"
BY = "print the accuracy of each class (--by=class), or of groups: a CSV with a column path (or index), and COLUMN"
WIDTH = 80  # columns of a terminal that does not say how many it has
SAID = {  # what a split is of a run with config.holdout
    "val": "the test images; in training the run was evaluated on --split=holdout",
    "train": "the training images, without those that were held out",
    "holdout": "the training images that were held out, on which the run was evaluated in training",
}


def add_arguments(verb: argparse.ArgumentParser) -> None:
    common.add_run(verb)
    common.add_reduction(verb)
    common.add_tta(verb)
    common.add_data_dir(verb, "where the images are, if not where the run was trained from")
    verb.add_argument("--dataset", default="", help="another dataset with the same classes: folder, imagenet100, ...")
    verb.add_argument("--classes", default="", help="that dataset's list of classes, or name")
    verb.add_argument("--split", default="val", choices=("val", "train", "holdout"), help=SPLIT)
    verb.add_argument("--output", default="", metavar="DIR", help="write scores, logits of every image, and pictures")
    verb.add_argument("--by", default="", metavar="class|FILE.csv:COLUMN", help=BY)
    verb.add_argument("--confusion", action="store_true", help="print which classes are taken for which")


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    from stce_jax.data.catalog import check_single_label
    from stce_jax.processes import peers as processes
    from stce_jax.processes.stopping import interrupted_by_signal
    from stce_jax.verbs.evaluate import evaluate
    from stce_jax.workdir.layout import read_config
    from stce_jax.workdir.score import said

    names = ("data_dir", "dataset", "classes", "split", "output", "reduction", "tta", "by")
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
    if result["tta"]:
        terminal.say(f"test-time augmentation {result['tta']}: means of the probabilities of several views of an image")
    if result["holdout"]:
        terminal.say(f"split {result['split']}: {SAID[result['split']]}")
    if "reliability" in result:
        error = 100 * result["calibration_error"]
        terminal.say(f"calibration error {error:.2f}%, in {len(result['reliability'])} bins")
    if result["metrics"]:
        terminal.say("  ".join(f"{name} {value:.4g}" for name, value in result["metrics"].items()))
    if "by" in result:
        terminal.say("", *_lines_by(result["by"], shutil.get_terminal_size((WIDTH, 24)).columns))
        if arguments.by == "class":
            terminal.say(f"balanced accuracy {100 * result['balanced_accuracy']:.2f}%, the mean of these")
    elif arguments.by:
        terminal.say("", *_lines_by_class(result))
    if arguments.confusion:
        from stce_jax.commands import confusion

        terminal.say("", *confusion.lines_of(result["confusion"], result["class_names"]))
    if arguments.output:
        pictures = ", confusion.csv, confusion.png, reliability.png" if "confusion" in result else ""
        groups = ", by.json" if "by" in result else ""
        terminal.say(f"{arguments.output}: evaluation.json, predictions.npz{pictures}{groups}")


def _lines_by(by: Mapping[str, Any], width: int) -> list[str]:
    """A table of the accuracy of each group in so many columns; below it what was in none."""
    from stce_jax.commands import confusion

    rows = [["group", "images", "top-1", "95% interval"]]
    for group in by["groups"]:
        numbers = [f"{100 * group[name]:.2f}%" for name in ("top1", "low", "high")] if group["images"] else []
        cells = [numbers[0], f"{numbers[1]} to {numbers[2]}"] if numbers else ["-", "-"]
        rows.append([group["group"] or "(empty)", str(group["images"]), *cells])
    others = [max(map(len, column)) for column in list(zip(*rows, strict=True))[1:]]
    left = max(confusion.NARROWEST, width - sum(others) - len(others) * len(tables.GAP))
    lines = tables.aligned([[confusion.fitted(row[0], left), *row[1:]] for row in rows], right=(1, 2, 3))
    lines.insert(0, f"by {by['by']}, the worst first")
    for key, said in (("images_without_row", "images have no row"), ("rows_without_image", "rows have no image")):
        if by[key]:
            lines.append(f"{by[key]:,} {said}")
    return lines


def _lines_by_class(result: Mapping[str, Any]) -> list[str]:
    """A table of the average precision of each class, where images have several labels."""
    rows = [["class", "images", "average precision"]]
    for class_name, own in zip(result["class_names"], result["per_class"].values(), strict=True):
        rows.append([class_name, str(own["images"]), f"{100 * own['ap']:.2f}%" if own["images"] else "-"])
    return ["by class", *tables.aligned(rows, right=(1, 2))]
