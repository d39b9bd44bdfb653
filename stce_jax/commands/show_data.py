"""The words of `stce show-data`."""

import argparse

from stce_jax.commands import common
from stce_jax.platform import terminal

HELP = "draw a training batch as the model sees it"
EXAMPLES = """
  stce show-data --config=digits
  stce show-data --config=stce_vit_s --output=batch.png --step=1000 --config.augment.cutmix=0"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    common.add_config(verb)
    verb.add_argument("--output", default="show_data.png", help="the picture to write (default: show_data.png)")
    verb.add_argument("--step", type=int, default=0, help="the training step whose batch is drawn (default: 0)")
    verb.usage = "stce show-data --config=CONFIG [--data_dir=DIR] [--output=FILE] [--step=N] [--config.KEY=VALUE ...]"


def run(arguments: argparse.Namespace, overrides: list[str]) -> None:
    config = common.load_config(arguments, overrides)
    from stce_jax.verbs.show_data import show_data

    count = len(show_data(config, arguments.output, step=arguments.step))
    terminal.say(f"{arguments.output}: the {count} images of step {arguments.step}; its last lines explain the targets")
