"""The words of `stce visualize`."""

import argparse
import os
from collections.abc import Sequence
from typing import Any

from stce_jax.commands import common
from stce_jax.errors import ConfigError
from stce_jax.platform import terminal

HELP = "draw the super tokens on images, what the class token attends to, or what a token reduction keeps"
EXAMPLES = """
  stce visualize dog.jpg photos/ --workdir=runs/stce
  stce visualize dog.jpg --workdir=runs/stce --token=7,5
  stce visualize dog.jpg --workdir=runs/patch --attention
  stce visualize dog.jpg --workdir=runs/evit --reduced
  stce visualize dog.jpg --model=vit_s_stce --image_size=448
  stce visualize photos/ --workdir=runs/stce --html

In each iteration a pixel of the stem's features belongs to the super token of its greatest affinity. Of a model with a
token reduction, places whose tokens are dropped are dark, those that are merged have one outline and one colour.
Where all tokens give to all new ones, a place is of the one that takes most of it; a token that takes most of no place
is neither seen nor counted. Blocks are counted from 0, as in the config."""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("paths", nargs="+", metavar="PATH", help="image files, and folders with images at any depth")
    common.add_run(verb, required=False)
    verb.add_argument("--model", default="", help="instead of a run: a model of `stce models` with random weights")
    verb.add_argument("--image_size", type=int, help="side of the images in pixels (the run's own, or 224)")
    verb.add_argument("--seed", type=int, help="of the random weights (0)")
    verb.add_argument("--attention", action="store_true", help="draw the class token's attention, block by block")
    verb.add_argument("--token", type=_token, metavar="ROW,COLUMN", help="draw the affinities to one super token")
    verb.add_argument("--reduced", action="store_true", help="draw what the token reduction keeps, merges or drops")
    page = "write one page for a browser in place of pictures: move over an image and see all there is of it"
    verb.add_argument("--html", action="store_true", help=page)
    verb.add_argument("--tile", type=int, default=448, help="side of an image in the pictures in pixels (448)")
    verb.add_argument("--output", default="", help="directory of the pictures (visualize in the workdir, or here)")


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    of_run, size = common.of_run(arguments), arguments.image_size
    if bool(arguments.workdir) == bool(arguments.model):
        raise ConfigError("give either --workdir=RUN or --model=NAME")
    if arguments.model and (arguments.ema or arguments.checkpoint != "last"):
        raise ConfigError("--checkpoint and --ema are of a --workdir; a --model has random weights")
    if arguments.workdir and arguments.seed is not None:
        raise ConfigError("--seed is of a --model's random weights; a --workdir has its own")
    if arguments.html and (arguments.attention or arguments.token or arguments.reduced):
        raise ConfigError("--html shows whatever there is; give it without --attention, --token and --reduced")
    from stce_jax.data.files import list_images
    from stce_jax.verbs.visualize import IMAGE_SIZE, open_run, random_model, visualize
    from stce_jax.verbs.visualize_page import visualize_page

    files = list_images(arguments.paths, terminal.warn)  # before a model is made
    common.register_modules(arguments)
    if arguments.model:
        subject = random_model(arguments.model, IMAGE_SIZE if size is None else size, arguments.seed or 0)
        output = arguments.output or "visualize"
    else:
        subject = open_run(**of_run, image_size=size)
        output = arguments.output or os.path.join(arguments.workdir, "visualize")
    failures: list[Exception] = []
    if arguments.html:
        about = f"{arguments.model}, random weights" if arguments.model else _name(arguments)
        options: dict[str, Any] = {"about": about, "tile": arguments.tile, "unreadable": common.complain(failures)}
        page = visualize_page(files, subject, output, **options)
        text = f"{page.path}: {page.images} image{'s' * (page.images != 1)}, {page.size / 1e6:.1f} MB"
        left_out = f"; {page.left_out} more do not fit: give fewer, or a smaller --tile" if page.left_out else ""
        terminal.say(text + left_out)
        common.end_with(failures, len(files))
        return
    visualize(
        files,
        subject,
        output,
        attention=arguments.attention,
        token=arguments.token,
        reduced=arguments.reduced,
        tile=arguments.tile,
        unreadable=common.complain(failures),
        report=terminal.say,
    )
    common.end_with(failures, len(files))


def _name(arguments: argparse.Namespace) -> str:
    """A run without its place, which is nobody's business who looks at a page, and which weights of it."""
    name = os.path.basename(os.path.normpath(arguments.workdir))
    return f"{name}, checkpoint {arguments.checkpoint}" + ", moving average" * arguments.ema


def _token(text: str) -> tuple[int, int]:
    try:
        row, column = map(int, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no ROW,COLUMN such as 7,5") from None
    return row, column
