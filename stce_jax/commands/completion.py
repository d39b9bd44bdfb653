"""The words of `stce completion`."""

import argparse
import sys
from collections.abc import Sequence

from stce_jax.verbs.completion import SHELLS

HELP = "print a script with which bash or zsh complete this command line"
EXAMPLES = """
  stce completion bash > ~/.local/share/bash-completion/completions/stce
  stce completion zsh > ~/.zfunc/_stce

For bash the package bash-completion reads such files; without it, have ~/.bashrc source the file. For zsh,
fpath=(~/.zfunc $fpath) must stand in ~/.zshrc before compinit. Write the file again after an update of stce_jax."""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("shell", choices=SHELLS, help="the shell")


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    from stce_jax.verbs.completion import completion

    sys.stdout.write(completion(arguments.make_parser(), arguments.shell) + "\n")  # a script, with tabs and all
