"""`stce completion`: a script with which bash or zsh complete the command line; no Python runs while they do."""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from stce_jax import configs

SHELLS = ("bash", "zsh")
# What is completed, by an argument's name: these words; directories; nothing. Choices are argparse's own, numbers are
# not completed, and any other free text is completed as a file.
WORDS = {
    "checkpoint": ("last", "best"),
    "dataset": ("folder", "imagenet100", "imagenet2012"),
    "list": ("done", "running", "stopped", "failed", "planned"),
    "on_bad": ("error", "skip"),
    "scale": ("paper", "medium_128", "medium", "small", "smoke"),
    "submit": ("slurm", "local"),
    "table": (
        *("table1", "table6", "table7", "table8", "readings", "all"),
        *("reductions", "bodies", "clustering", "recipe", "recipe_test"),
    ),
}
DIRECTORIES = ("workdir", "workdirs", "data_dir")
NOTHING = ("pattern", "model", "seeds", "runs", "cell", "partition", "time", "sbatch")

# `--config`: the shipped ones, and files. A name with "file" in it has bash append a slash to directories.
CONFIGS = {
    "bash": """
_stce_config_files() {{
  compgen -W "{names}" -- "$1"
  compgen -f -X '!*.py' -- "$1"
  compgen -d -- "$1"
}}""",
    "zsh": """
_stce_config_files() {{
  _alternative 'configs:config:({names})' 'files:file:_files -g "*.py"'
}}""",
}
# Bash takes "--option=value" for three words, or for one if "=" is not in COMP_WORDBREAKS; _shtab_stce expects two.
BASH_EQUALS = """
_stce() {
  local words=() current=$COMP_CWORD start="" last="" index word
  for index in "${!COMP_WORDS[@]}"; do
    word=${COMP_WORDS[index]}
    if [[ $word == "=" && $last == --* ]]; then
      if (( index == COMP_CWORD )); then
        words+=("")
      elif (( index < COMP_CWORD )); then
        (( current-- ))
      fi
    elif [[ $word == --*=* ]]; then
      words+=("${word%%=*}" "${word#*=}")
      (( index <= COMP_CWORD )) && (( current++ ))
      (( index == COMP_CWORD )) && start="${word%%=*}="
    else
      words+=("$word")
    fi
    last=$word
  done
  local COMP_WORDS=("${words[@]}") COMP_CWORD=$current
  _shtab_stce
  COMPREPLY=("${COMPREPLY[@]/#/$start}")
}

complete -o bashdefault -F _stce stce
"""


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script that completes verbs, options, paths, shipped configs and choices.

    Args:
      parser: of the whole command line, made for this: what completes is set in it.
      shell: one of `SHELLS`.

    Returns:
      The script's text, to be written to a file that the shell reads.
    """
    import shtab

    from stce_jax.configs import default

    reductions = [name for name in default.get_config().model.reduction if name != "name"]
    words = WORDS | {"reduction": ("none", *reductions)}
    (verbs,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for verb in verbs.choices.values():
        for action in verb._actions:
            _set_completion(action, words, shtab)
    names = sorted(path.stem for path in Path(configs.__file__).parent.glob("[!_]*.py"))
    preamble: Any = {name: text.format(names=" ".join(names)) for name, text in CONFIGS.items()}
    script = shtab.complete(parser, shell, preamble=preamble)
    if shell == "bash":
        return script + BASH_EQUALS
    # An option with a value may have it behind "=", too.
    return re.sub(r'^(  "--[\w-]+)(\[.*\]:.*")$', r"\1=\2", script, flags=re.MULTILINE)


def _set_completion(action: Any, words: Mapping[str, Sequence[str]], shtab: ModuleType) -> None:
    """Sets what shtab reads of an action, `complete` or `choices`."""
    if action.choices or action.nargs == 0 or action.type or action.dest in NOTHING:
        return
    if action.dest in words:
        action.choices = words[action.dest]
    elif action.dest == "config":
        action.complete = dict.fromkeys(SHELLS, "_stce_config_files")
    else:
        action.complete = shtab.DIRECTORY if action.dest in DIRECTORIES else shtab.FILE
