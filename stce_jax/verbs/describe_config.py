"""`stce config`: every key of a config with its value, its meaning, and what it takes.

Meanings are the comments of `configs/default.py`. What a key takes is what the check of its owner says of a value that
no key takes, so that each range stands in one place.
"""

import ast
import functools
import inspect
import io
import tokenize
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import config_dict

from stce_jax.configs import default
from stce_jax.errors import ConfigError
from stce_jax.training.assemble import build_model, load_config
from stce_jax.training.options import check_options
from stce_jax.workdir.config import flatten, known_keys
from stce_jax.workdir.spelling import meant

# What no key takes, by the kind of its value; options of bodies have an entry a stage, of which some have four.
IMPOSSIBLE: dict[type, Sequence[Any]] = {
    int: (-(10**12),),
    float: (-1e39,),
    str: ("a\0",),
    tuple: (("a\0",), ("a\0",) * 4, ("a\0",) * 3),
}


def describe_config(name: str = "default", pattern: str = "", overrides: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The keys of a config that have a pattern in them.

    Args:
      name: a shipped config, or a .py file.
      pattern: part of a key or of its meaning, such as "learning_rate", in any case; "" is in all.
      overrides: command-line words, "--config.seed=1".

    Returns:
      [{"key", "value", "takes", "meaning"}, ...] in the order of `configs/default.py`. "takes" is "" of a key of a
      module that the config's file has registered, and where the check names no range.

    Raises:
      ConfigError: no such config, or no key fits.
    """
    values, known = flatten(load_config(name, overrides)), meanings()
    wanted = [key for key in values if pattern.lower() in f"{key} {known.get(key, '')}".lower()]
    if not wanted:
        near = meant(pattern, list(values))
        raise ConfigError(f"no key of config {name} has {pattern!r} in it{f'; try {near}' if near else ''}")
    return [
        {"key": key, "value": values[key], "takes": takes(key) if key in known else "", "meaning": known.get(key, "")}
        for key in wanted
    ]


@functools.cache
def meanings() -> dict[str, str]:
    """{key: its comment in `configs/default.py`}, of every key."""
    source = inspect.getsource(default)
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    return {key: comments.get(line, "") for key, line in _assignments(ast.parse(source))}


def _assignments(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """(key, line) of each `section.key = value` of get_config; `section.part = name = ...` gives a section a name."""
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "get_config")
    sections, known = {"config": ""}, set(known_keys())
    for node in function.body:
        if not isinstance(node, ast.Assign):
            continue
        target, *names = node.targets
        if not isinstance(target, ast.Attribute) or not isinstance(target.value, ast.Name):
            continue
        key = sections[target.value.id] + target.attr
        if names:
            sections |= {name.id: f"{key}." for name in names if isinstance(name, ast.Name)}
        elif key in known:  # a section without options has no name of its own
            yield key, node.lineno


def takes(key: str) -> str:
    """What a key takes, in words: "a whole number between 1 and 1024"; "" if its check does not say.

    Args:
      key: of the package's own.
    """
    config = default.get_config().unlock()
    *sections, last = key.split(".")
    if len(sections) == 3:  # model, part, module: of the others no option is read
        config.model[sections[1]].name = sections[2]
    section = functools.reduce(lambda found, name: found[name], sections, config)
    kind, optional = section.get_type(last), section[last] is None
    if kind is bool:
        return "True or False" + ", or None" * optional
    for value in IMPOSSIBLE[kind]:
        section[last] = value
        _, found, words = _refusal(config, key).partition("; it must be ")
        if found:
            each = (
                "each " if kind is tuple and words.startswith(("a whole number", "one of", "between", "above")) else ""
            )
            return f"{each}{words.split('; ')[0]}" + ", or None" * optional
    return ""


def _refusal(config: config_dict.ConfigDict, key: str) -> str:
    """What the checks say about a config."""
    try:
        check_options(config)
        if key.startswith("model."):
            build_model(config, 2)
    except ConfigError as error:
        return str(error)
    return ""
