"""The words of `stce export`."""

import argparse
from collections.abc import Sequence

from stce_jax.commands import common
from stce_jax.platform import terminal

HELP = "write a run as files that are used without it, for CPUs, GPUs and TPUs"
EXAMPLES = """
  stce export --workdir=runs/digits --output=exports/digits
  stce export --workdir=runs/stce --checkpoint=best --ema --output=exports/stce --platforms=cpu,cuda

in Python:
  model = stce_jax.load_exported("exports/digits")
  logits = model.logits(model.preprocess("seven.png")[None])     [1, classes], in the order of model.class_names"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    common.add_run(verb)
    verb.add_argument("--output", required=True, metavar="DIR", help="the directory to make")
    verb.add_argument(
        "--platforms",
        type=lambda text: tuple(text.split(",")),
        default=("cpu", "cuda", "tpu"),
        help="where it shall run, with commas (default: cpu,cuda,tpu)",
    )
    verb.add_argument("--batch", type=_batch, metavar="N", help="images in every call (default: symbolic, any number)")


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    from stce_jax.verbs.export import export

    common.register_modules(arguments)
    done = export(
        output=arguments.output, platforms=arguments.platforms, batch=arguments.batch, **common.of_run(arguments)
    )
    sizes = " and ".join(map(str, done["batch_sizes"]))
    terminal.say(
        f"{arguments.output}: step {done['step']}, {done['dtype']}, for {', '.join(done['platforms'])}, "
        f"{arguments.batch or 'any number of'} images a call, {done['bytes'] / 2**20:.1f} MiB",
        f"read back: weights equal to the bit; logits of {sizes} images differ from the run's by at most "
        f"{done['difference']:.1e} (greatest logit {done['greatest_logit']:.2f})",
    )


def _batch(text: str) -> int | None:
    if text == "symbolic":
        return None
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of images nor symbolic") from error
