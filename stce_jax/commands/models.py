"""The words of `stce models`."""

import argparse
from collections.abc import Sequence

from stce_jax.commands import tables
from stce_jax.platform import terminal

HELP = "list models; with a pattern, their parameters and multiply-adds an image"
EXAMPLES = """
  stce models
  stce models 'vit_s_*' --image_size=384
  stce models 'swin_*'
  stce models vit_s_patch --reduction=evit:keep_rate=0.7
  stce models vit_s_patch --options=registers=4,mlp=swiglu"""
COLUMNS = {"model": 18, "parameters": 11, "embedding": 10, "multiply-adds": 14}  # minimum widths
OF_REDUCTION = {"all tokens": 14, "reduction": 12}


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("pattern", nargs="?", default="", help="shell pattern of names; without it, the names alone")
    verb.add_argument("--image_size", type=int, default=224, help="side of the images in pixels (224)")
    verb.add_argument("--num_classes", type=int, default=100, help="classes of the head (100)")
    text = "count with a token reduction: what papers count (all tokens of the last block), and the method's own work"
    verb.add_argument("--reduction", default="", metavar="NAME", help=text)
    text = "options of the models, such as registers=4,mlp=swiglu"
    verb.add_argument("--options", default="", metavar="OPTION=VALUE,...", help=text)


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    from stce_jax.verbs.summary import bodies, summarize

    if not (arguments.pattern or arguments.reduction or arguments.options):
        lines = [["body", "models", "each also with"]]
        lines += [[body, " ".join(names), " ".join(endings)] for body, (names, endings) in bodies().items()]
        terminal.say(*tables.aligned(lines), "stce models 'vit_s_*' counts parameters and multiply-adds")
        return
    sizes = {"image_size": arguments.image_size, "num_classes": arguments.num_classes}
    rows = summarize(arguments.pattern or "*", **sizes, reduction=arguments.reduction, options=arguments.options)
    columns = {**COLUMNS, **(OF_REDUCTION if arguments.reduction else {})}
    cells = [list(columns)]
    for row in rows:
        name, *counts = row.values()
        cells.append([name, *map("{:,}".format, counts)])
    terminal.say(*tables.aligned(cells, right=range(1, len(columns)), minimum=columns.values()))
