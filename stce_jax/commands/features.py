"""The words of `stce features`."""

import argparse
from collections.abc import Sequence
from typing import Any

from stce_jax.commands import common
from stce_jax.errors import ConfigError
from stce_jax.platform import terminal

HELP = "write what a run's model makes of images, as arrays"
EXAMPLES = """
  stce features photos --workdir=runs/pets --output=pets.npz
  stce features photos --workdir=runs/pets --kind=tokens --checkpoint=best"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    common.add_images(verb)
    verb.add_argument(
        "--kind",
        default="pooled",
        choices=("pooled", "tokens"),
        help="pooled: a vector an image, what the head reads (the default); tokens: a vector a place in the image",
    )
    verb.add_argument("--output", default="features.npz", metavar="FILE", help="the file (default: features.npz)")


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    import numpy as np

    from stce_jax.data.files import list_images
    from stce_jax.verbs.features import features

    if arguments.output == "-":
        raise ConfigError("arrays cannot be printed; give --output a file")
    files = list_images(arguments.paths, terminal.warn)
    common.register_modules(arguments)
    failures: list[Exception] = []
    with common.output_file(arguments.output) as file:
        arrays: Any = features(
            files,
            **common.of_run(arguments),
            kind=arguments.kind,
            batch_size=arguments.batch_size,
            unreadable=common.complain(failures),
        )
        np.savez(file, **arrays)
    shapes = ", ".join(f"{name} {'x'.join(map(str, array.shape))}" for name, array in arrays.items())
    terminal.say(f"{arguments.output}: {shapes}")
    common.end_with(failures, len(files))
