"""The words of `stce export`."""

import argparse
from collections.abc import Sequence
from typing import Any

from stce_jax.commands import common
from stce_jax.convert.formats import FORMATS
from stce_jax.platform import terminal

HELP = "write a run as files that are used without it: by JAX, PyTorch, timm, ONNX, the Hugging Face hub"
EXAMPLES = """
  stce export --workdir=runs/digits --output=exports/digits
  stce export --workdir=runs/stce --checkpoint=best --ema --output=exports/stce --platforms=cpu,cuda
  stce export --workdir=runs/deit --output=exports/deit --format=timm
  stce export --workdir=runs/stce --output=exports/stce_onnx --format=onnx
  stce export --workdir=runs/stce --output=exports/card --format=huggingface --license=cc-by-4.0 --push=me/stce

in Python:
  model = stce_jax.load_exported("exports/digits")
  logits = model.logits(model.preprocess("seven.png")[None])     [1, classes], in the order of model.class_names"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    common.add_run(verb)
    verb.add_argument("--output", required=True, metavar="DIR", help="the directory to make")
    verb.add_argument("--format", default="jax", choices=FORMATS, help="what to write (default: jax)")
    verb.add_argument(
        "--platforms", type=_names, metavar="NAMES", help="jax: where it shall run (default: cpu,cuda,tpu)"
    )
    verb.add_argument(
        "--batch", type=_batch, metavar="N", help="jax: images in every call (default: symbolic, any number)"
    )
    verb.add_argument("--license", metavar="NAME", help="timm, huggingface: of the weights, such as cc-by-4.0")
    verb.add_argument("--include", type=_names, metavar="NAMES", help="huggingface: other formats to put into it")
    verb.add_argument("--push", default="", metavar="OWNER/NAME", help="huggingface: upload it to this repository")


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    from stce_jax.verbs.export import export

    common.register_modules(arguments)
    names = ("output", "format", "platforms", "license", "include", "push")
    options = {name: getattr(arguments, name) for name in names}
    symbolic = arguments.batch == "symbolic"
    if symbolic and arguments.format == "jax":
        arguments.batch = None
    done = export(**options, batch=arguments.batch, **common.of_run(arguments))
    terminal.say(*_lines(arguments, done))


def _lines(arguments: argparse.Namespace, done: dict[str, Any]) -> list[str]:
    """What is said of an export."""
    what = [f"step {done['step']}", done["dtype"]]
    if "platforms" in done:
        what += [f"for {', '.join(done['platforms'])}", f"{arguments.batch or 'any number of'} images a call"]
    else:
        what.append(arguments.format)
    lines = [f"{arguments.output}: {', '.join(what)}, {done['bytes'] / 2**20:.1f} MiB"]
    if done["difference"] is not None:
        sizes = " and ".join(map(str, done["batch_sizes"]))
        by = f" by {done['by']}" if "by" in done else ""
        weights = "" if "only_logits" in done else "weights equal to the bit; "
        lines.append(
            f"read back: {weights}logits of {sizes} images{by} differ from the run's by at most "
            f"{done['difference']:.1e} (greatest logit {done['greatest_logit']:.2f})"
        )
    lines += done.get("notes", ())
    return [*lines, f"uploaded to {done['url']}"] if "url" in done else lines


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.split(",")))  # what is named twice is written once


def _batch(text: str) -> int | str:
    if text == "symbolic":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of images nor symbolic") from error
