"""What is answered to an option that a verb does not have: what to write instead, where that can be told."""

import argparse
import difflib
import re
from collections.abc import Collection, Sequence

from stce_jax.errors import ConfigError, shown

# Verbs' own options as they were called up to version 0.1.
FORMER = {"--on-bad": "--on_bad", "--val-labels": "--val_labels", "--per_class": "--by=class"}
# What is answered to options that other tools have, and this one has another way -> these options.
_ANSWERED = {
    "a run resumes by itself: give its --workdir": ("resume", "resume_from_checkpoint", "auto_resume", "ckpt_path"),
    "write --workdir=DIR": ("output", "output_dir", "out", "logdir", "save_dir", "experiment"),
    "write --data_dir=DIR": ("data", "data_path", "data_root", "dataset_dir", "train_dir"),
    "write --init_from=RUN, or a file or folder of weights": (
        *("pretrained", "finetune", "initial_checkpoint", "weights", "init"),
    ),
    "every GPU that the process sees is used; set CUDA_VISIBLE_DEVICES to choose some": (
        *("gpu", "gpus", "device", "devices", "local_rank"),
    ),
}
ANSWERS = {name: answer for answer, names in _ANSWERED.items() for name in names}


def with_todays_names(words: Sequence[str]) -> list[str]:
    """A command line with the names that options have today in place of their former ones."""
    parts = (word.partition("=") for word in words)
    return [FORMER.get(name, name) + equals + value for name, equals, value in parts]


def refuse(rest: Sequence[str], arguments: argparse.Namespace) -> None:
    """Refuses words that are neither options of the verb nor, where it has these, --config.KEY.

    Args:
      rest: the words that the verb's parser does not know.
      arguments: what it makes of the others.

    Raises:
      ConfigError: names the first of them, and what to write.
    """
    from stce_jax.workdir.config import known_keys

    if found := first_unknown(rest, arguments.takes_overrides):
        keys = known_keys() if arguments.takes_overrides else []
        answer = advice(arguments.verb, *found, arguments.option_strings, keys)
        raise ConfigError(f"unknown argument {shown(found[0])}; {answer}")


def first_unknown(rest: Sequence[str], takes_overrides: bool) -> tuple[str, str | None] | None:
    """(word, its value or None) of the first word that neither is --config.KEY nor the value of one.

    Args:
      rest: what the parser of a verb does not know. A value may be a word of its own.
      takes_overrides: whether the verb has --config.KEY=VALUE.
    """
    value_may_follow = False
    for place, word in enumerate(rest):
        name, equals, value = word.partition("=")
        if takes_overrides and re.match(r"--?(no)?config\.", name):
            value_may_follow = not equals
        elif value_may_follow and not _is_option(word):
            value_may_follow = False
        else:
            following = rest[place + 1 : place + 2]
            return name, value if equals else next((word for word in following if not _is_option(word)), None)
    return None


def advice(verb: str, name: str, value: str | None, options: Collection[str], keys: Collection[str]) -> str:
    """What to write in place of a word that the verb does not have.

    Args:
      verb: such as "train".
      name: as it was typed, such as "--batch-size".
      value: as it was typed, or None.
      options: the verb's own, such as "--workdir".
      keys: config keys, if the verb has --config.KEY=VALUE.
    """
    from stce_jax.workdir.spelling import called, meant

    help_text = f"see stce {verb} --help"
    if not _is_option(name):
        return help_text
    plain = name.lstrip("-").replace("-", "_").lower()
    given = f"={value}" if value is not None else ""
    by_name = {option.lstrip("-"): option for option in options}
    squeezed = {known.replace("_", ""): option for known, option in by_name.items()}
    if option := squeezed.get(plain.replace("_", "")):
        return f"write {option}{given}"
    if keys and plain in ANSWERS:
        return ANSWERS[plain]
    if key := called(plain, keys):
        return f"write --config.{key}{given or '=VALUE'}"
    if near := difflib.get_close_matches(plain, by_name, 1):
        return f"did you mean {by_name[near[0]]}{given}?"
    if key := meant(plain, keys):
        return f"did you mean --config.{key}{given or '=VALUE'}?"
    return help_text


def _is_option(word: str) -> bool:
    """Whether a word is no value, such as -1."""
    return re.match("--?[A-Za-z]", word) is not None
