"""The words of each verb: the examples in its help are right, and there is a documented function behind it."""

import argparse
import importlib
import inspect
import itertools
import resource
import shlex
import subprocess
import sys

import pytest
from helpers import run_cli

from stce_jax.cli import VERBS, make_parser
from stce_jax.workdir.config import load_config

EXAMPLES = [
    (verb, line.strip())
    for verb, module in VERBS.items()
    for line in module.EXAMPLES.splitlines()
    if line.startswith("  stce ")
]
FUNCTIONS = {
    "models": ("summary", "summarize"),
    "config": ("describe_config", "describe_config"),
    "import": ("import_weights", "import_weights"),
}  # where the module or the function is not called as the verb is


@pytest.mark.parametrize("verb", VERBS)
def test_every_help_has_examples_of_its_verb(capsys, verb):
    examples = [line for name, line in EXAMPLES if name == verb]
    assert examples and all(line.startswith(f"stce {verb} ") or line == f"stce {verb}" for line in examples)
    code, out, _ = run_cli(capsys, verb, "--help")
    assert code == 0 and all(line in out.partition("examples:")[2] for line in examples)


@pytest.mark.parametrize("verb, line", EXAMPLES, ids=[line for _, line in EXAMPLES])
def test_examples_are_right(verb, line):
    words = list(itertools.takewhile(lambda word: word not in (">", "|"), shlex.split(line)))[1:]
    arguments, rest = make_parser().parse_known_args(words)
    assert arguments.verb == verb
    if not arguments.takes_overrides:
        assert rest == [], f"{verb} takes no {rest}"
    else:
        config = getattr(arguments, "config", "digits")  # any has the same keys
        load_config(config, rest)  # raises if a key or value is wrong


def test_a_wrong_example_would_be_found():
    """The test above can fail."""
    with pytest.raises(Exception, match=r"sed.*did you mean 'seed'"):
        test_examples_are_right("train", "stce train --config=digits --workdir=W --config.sed=1")
    with pytest.raises(AssertionError, match="evaluate takes no"):
        test_examples_are_right("evaluate", "stce evaluate --workdir=W --chekpoint=best")


@pytest.mark.parametrize("verb", VERBS)
def test_every_argument_is_explained(verb):
    (verbs,) = (action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    for action in verbs.choices[verb]._actions:
        assert action.help, f"{verb}: {action.dest} has no help"


@pytest.mark.parametrize("verb", VERBS)
def test_a_documented_function_does_what_the_verb_does(verb):
    module, function = FUNCTIONS.get(verb, (verb.replace("-", "_"),) * 2)
    found = getattr(importlib.import_module(f"stce_jax.verbs.{module}"), function)
    documentation = inspect.getdoc(found)
    assert "\nArgs:\n" in documentation and "\nReturns:\n" in documentation, f"{found.__module__}.{function}"
    for name in inspect.signature(found).parameters:
        assert name in documentation, f"{function}: {name} is not explained"


@pytest.mark.slow
def test_the_help_is_quick():
    """Seconds of processor time, the best of three: other processes do not count."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "stce_jax", "--help"], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5, f"stce --help takes {min(seconds):.2f} s"
