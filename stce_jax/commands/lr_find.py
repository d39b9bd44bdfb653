"""The words of `stce lr-find`."""

import argparse
from collections.abc import Sequence

from stce_jax.commands import common
from stce_jax.platform import terminal

HELP = "find a learning rate: a short training in which it grows until the loss diverges"
EXAMPLES = """
  stce lr-find --config=digits --output=lr_digits
  stce lr-find --config=small_folder --data_dir=photos --output=lr_muon --config.optimizer.name=muon
  stce lr-find --config=digits --output=lr_tuned --config.init_from=runs/digits --max=0.1"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    common.add_config(verb)
    verb.add_argument("--output", required=True, metavar="DIR", help="new directory for lr_find.json and lr_find.png")
    verb.add_argument("--min", type=float, default=1e-6, metavar="RATE", help="the first step's rate (default: 1e-6)")
    verb.add_argument("--max", type=float, default=1.0, metavar="RATE", help="the last step's rate (default: 1)")
    verb.add_argument("--steps", type=int, default=100, metavar="N", help="from one to the other (default: 100)")
    verb.usage = (
        "stce lr-find --config=CONFIG --output=DIR [--data_dir=DIR] [--min=RATE] [--max=RATE] [--steps=N] "
        "[--config.KEY=VALUE ...]"
    )


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    config = common.load_config(arguments, overrides)
    from stce_jax.verbs.lr_find import lr_find

    rates = {"lowest": arguments.min, "highest": arguments.max}
    found = lr_find(config, arguments.output, steps=arguments.steps, **rates)
    if found["stopped"]:
        terminal.say(f"stopped: {found['stopped']}")
    if found["suggestion"] is None:
        terminal.say(f"no suggestion: the loss does not fall between {arguments.min:g} and {arguments.max:g}")
    else:
        terminal.say(
            f"the smoothed loss is lowest at {found['lowest']:.2g} and falls fastest at {found['steepest']:.2g}; "
            "suggested is a tenth of the lowest:",
            found["words"],
        )
        if not found["stopped"] and found["lowest"] == found["learning_rates"][-1]:
            terminal.say("note: the loss still falls at the last rate; give a larger --max")
    terminal.say(f"{arguments.output}: lr_find.json, lr_find.png")
