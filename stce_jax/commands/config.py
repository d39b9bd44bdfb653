"""The words of `stce config`."""

import argparse
import json
import shutil
import textwrap
from collections.abc import Sequence

from stce_jax.platform import terminal

HELP = "list the keys of a config: value, meaning, and what each takes"
EXAMPLES = """
  stce config
  stce config digits
  stce config small_folder optimizer
  stce config default learning_rate --config.batch_size=256
  stce config default mixup --json"""
INDENT = "    "


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("name", nargs="?", default="default", help="a shipped config (default), or a .py file")
    verb.add_argument("pattern", nargs="?", default="", help="part of a key or of its meaning; without it, all")
    verb.add_argument("--json", action="store_true", help="print JSON lines instead")
    verb.set_defaults(takes_overrides=True)
    verb.usage = "stce config [NAME] [PATTERN] [--json] [--config.KEY=VALUE ...]"


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    from stce_jax.verbs.describe_config import describe_config

    rows = describe_config(arguments.name, arguments.pattern, overrides)
    if arguments.json:
        terminal.say(*map(json.dumps, rows))
        return
    columns = min(shutil.get_terminal_size().columns, 120)
    for row in rows:
        terminal.say(f"{row['key']} = {row['value']!r}")
        for text in filter(None, (row["meaning"], row["takes"] and f"takes {row['takes']}")):
            terminal.say(*textwrap.wrap(text, columns, initial_indent=INDENT, subsequent_indent=INDENT))
