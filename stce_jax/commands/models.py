"""The words of `stce models`."""

import argparse
from collections.abc import Sequence

from stce_jax.commands import tables
from stce_jax.platform import terminal

HELP = "list models with their parameters and multiply-adds an image"
EXAMPLES = """
  stce models
  stce models 'vit_s_*' --image_size=384"""
COLUMNS = {"model": 18, "parameters": 11, "embedding": 10, "multiply-adds": 14}  # minimum widths


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("pattern", nargs="?", default="*", help="shell pattern of names")
    verb.add_argument("--image_size", type=int, default=224, help="side of the images in pixels (224)")
    verb.add_argument("--num_classes", type=int, default=100, help="classes of the head (100)")


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    from stce_jax.verbs.summary import summarize

    rows = summarize(arguments.pattern, image_size=arguments.image_size, num_classes=arguments.num_classes)
    cells = [list(COLUMNS)]
    for row in rows:
        counts = (row[name] for name in ("parameters", "embedding_parameters", "multiply_adds"))
        cells.append([row["name"], *map("{:,}".format, counts)])
    terminal.say(*tables.aligned(cells, right=(1, 2, 3), minimum=COLUMNS.values()))
