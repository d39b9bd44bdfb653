"""Another token reduction for a trained model, in one word: `none`, `topk`, `topk:keep_rate=0.5,blocks=3,6`.

It needs no training if the reduction has no parameters, or those that the run has.
"""

import ast
import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from flax import traverse_util
from ml_collections import config_dict

from stce_jax.errors import ConfigError, shown
from stce_jax.models import factory
from stce_jax.models.bodies import Body
from stce_jax.models.reductions import REDUCTIONS
from stce_jax.paths import first_line
from stce_jax.training.state import abstract_variables
from stce_jax.workdir import parts

NONE = "none"
WORDS = {"True": True, "true": True, "False": False, "false": False}


def with_reduction(config: config_dict.ConfigDict, model: Body, shapes: Any, text: str) -> tuple[Body, Any]:
    """(the model of a run with another reduction, shapes of its variables, which are some of the run's).

    Args:
      config: of the run.
      model, shapes: of the run, and of its variables.
      text: see `parse`. Options that are not given are those of the run's reduction if it is the same, or defaults.

    Raises:
      ConfigError: an unknown reduction or option, one that the model cannot have, or parameters that the run lacks.
    """
    name, fitting = parse(text)
    sections = parts.options(config.model)
    own = sections["reduction"] if sections["reduction"]["name"] == name else {}
    try:
        sections["reduction"] = {**own, **fitting, "name": name}
        other = factory.build_model(
            config.model.name,
            num_classes=model.num_classes,
            image_size=model.image_size,
            dtype=config.model.dtype,
            **sections,
        )
        wanted = abstract_variables(other, config.image_size)
    except ConfigError:
        raise
    except Exception as error:  # whatever options lead to that their module does not check
        raise ConfigError(f"the reduction {shown(text)} cannot work: {first_line(error)}") from error
    found = traverse_util.flatten_dict(shapes, sep="/")
    for path, leaf in traverse_util.flatten_dict(wanted, sep="/").items():
        if path not in found or found[path].shape != leaf.shape:
            raise ConfigError(
                f"the reduction {name!r} has parameters that the run lacks, such as {path}; train a model with it"
            )
    return other, wanted


def only(variables: Any, wanted: Any) -> Any:
    """Of nested variables those that are wanted, too."""
    if not isinstance(wanted, Mapping):
        return variables
    return {name: only(variables[name], part) for name, part in wanted.items()}


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """(name, {option: value}) of a reduction, as its module takes them; the name "" for "none".

    Args:
      text: NAME, or NAME:OPTION=VALUE,OPTION=VALUE. A value is a number, True, False or text, or several of them with
        commas between, as in "topk:blocks=3,6,9,keep_rate=0.5".

    Raises:
      ConfigError: it is nothing of that kind.
    """
    name, colon, rest = text.partition(":")
    values = _values(rest)
    if not name or values is None or bool(colon and (not rest or name == NONE)):
        raise ConfigError(
            f"the reduction is {shown(text)}; give a name, a name with options such as topk:keep_rate=0.5,blocks=3,6, "
            f"or {NONE}"
        )
    options = {option: found[0] if len(found) == 1 else tuple(found) for option, found in values.items()}
    options = {option: _fitting(REDUCTIONS.get(name), option, value) for option, value in options.items()}
    return ("" if name == NONE else name), options


def parse_options(text: str) -> dict[str, Any]:
    """{option: value} of a model's options in one word, as those of a reduction: "registers=4,norm=rmsnorm".

    Raises:
      ConfigError: it is nothing of that kind.
    """
    values = _values(text)
    if values is None:
        raise ConfigError(f"the options are {shown(text)}; give OPTION=VALUE, or several with commas between")
    return {option: found[0] if len(found) == 1 else tuple(found) for option, found in values.items()}


def _values(text: str) -> dict[str, list[Any]] | None:
    """{option: its values} of OPTION=VALUE,OPTION=VALUE,VALUE; None: it is something else."""
    values: dict[str, list[Any]] = {}
    for word in text.split(",") if text else ():
        option, equals, value = word.rpartition("=")
        if not value or option in values or bool(equals and not option) or not (equals or values):
            return None
        values.setdefault(option if equals else list(values)[-1], []).append(_value(value))
    return values


def _value(text: str) -> Any:
    if text in WORDS:
        return WORDS[text]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, int | float) else text


def _fitting(module: Any, option: str, value: Any) -> Any:
    """A single value as a tuple, if its field takes no single one."""
    kinds = {field.name: field.type for field in dataclasses.fields(module)} if module else {}
    accepted = typing.get_args(kinds.get(option)) or (kinds.get(option),)
    several = any((typing.get_origin(kind) or kind) in (tuple, list, Sequence) for kind in accepted)
    single = any(kind in (bool, int, float, str) for kind in accepted)
    return (value,) if several and not single and not isinstance(value, tuple) else value
