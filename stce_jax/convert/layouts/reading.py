"""What layouts read off a stranger's arrays and config.json to tell a model's options; every error is one line."""

import dataclasses
import math
import re
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import numpy as np

from stce_jax.errors import CheckpointError, shown
from stce_jax.models.bodies import BODIES

Arrays = Mapping[str, np.ndarray]
Config = Mapping[str, Any]
# Of BatchNorm, and of what PyTorch's modules keep beside their weights.
BUFFERS: tuple[str, ...] = (r".*\.num_batches_tracked", r".*\.relative_position_index(_\d+)?", r".*\.attn_mask")


def shape(arrays: Arrays, name: str, axes: int) -> tuple[int, ...]:
    """The shape of an array; CheckpointError if it is missing, empty, or has another number of axes."""
    if name not in arrays:
        raise CheckpointError(f"{shown(name)} is missing")
    found = tuple(arrays[name].shape)
    if len(found) != axes or not all(found):
        raise CheckpointError(f"{shown(name)} has the shape {found}, not {axes} axes of at least 1")
    return found


def renamed(arrays: Arrays, rename: Callable[[str], str]) -> dict[str, np.ndarray]:
    """The arrays under other names; CheckpointError if two get the same, of which one would be lost without a word."""
    found: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if found.setdefault(rename(name), array) is not array:
            raise CheckpointError(f"it has {shown(rename(name))} twice, once as {shown(name)}")
    return found


def count(names: Container[str], pattern: str) -> int:
    """How many names there are of a pattern such as "blocks.{}.norm1.weight", counted from 0 without a gap."""
    number = 0
    while pattern.format(number) in names:
        number += 1
    return number


def window_side(arrays: Arrays, name: str, offsets: int) -> int:
    """The side of the windows whose biases a table [.., offsets, ..] has: (2 w - 1)^2 of them."""
    side = math.isqrt(offsets)
    if side**2 != offsets or side % 2 == 0:
        raise CheckpointError(f"{shown(name)} has the shape {arrays[name].shape}, no table of square windows")
    return (side + 1) // 2


def same_everywhere(option: str, values: Sequence[int]) -> int:
    """The one value of an option that the body has once for all stages; CheckpointError if the stages differ."""
    if len(set(values)) != 1:
        raise CheckpointError(f"its stages have {option} of {', '.join(map(str, values))}; the body has one for all")
    return values[0]


def whole_ratio(option: str, larger: int, smaller: int) -> int:
    """larger / smaller; CheckpointError if it is no whole number."""
    if larger % smaller:
        raise CheckpointError(f"{option} is {larger}/{smaller}, no whole number, which the body wants")
    return larger // smaller


def refuse(arrays: Arrays, patterns: Mapping[str, str]) -> None:
    """Raises CheckpointError for names of what the body lacks; patterns: {regular expression of names: what it is}."""
    for pattern, what in patterns.items():
        if name := next((name for name in arrays if re.fullmatch(pattern, name)), None):
            raise CheckpointError(f"it has {shown(name)}: {what}, which the body has not")


def expect(config: Config, **values: Any) -> None:
    """Raises CheckpointError if a config.json says something else than the body does."""
    for name, value in values.items():
        if config.get(name, value) != value:
            raise CheckpointError(f"its config.json has {name}={shown(config[name])}; the body has {value!r}")


def given(config: Config, option: str) -> Any:
    """What a config.json says of an option: by itself, or among timm's model_args; None if it says nothing."""
    arguments = config.get("model_args")
    return config.get(option, arguments.get(option) if isinstance(arguments, Mapping) else None)


def published(body: str, shaped: Mapping[str, Any]) -> dict[str, Any] | None:
    """All options of the published size of a body that has these ones; None: no size has.

    Args:
      body: a name of `bodies.BODIES`.
      shaped: some options, lists as tuples.
    """
    module = BODIES[body]
    defaults = {field.name: field.default for field in dataclasses.fields(module)}
    for size in module.SIZES.values():
        options = defaults | size
        if all(options[name] == value for name, value in shaped.items()):
            return options
    return None


def unshaped(body: str, config: Config, shaped: Mapping[str, Any], *options: str) -> dict[str, Any]:
    """Options that show in no shape: what config.json says of them, else those of the published size.

    Args:
      body, shaped: see `published`.
      config: may have them by their names here.
      *options: their names.

    Raises:
      CheckpointError: neither tells one of them; it is named.
    """
    found, size = {}, published(body, shaped)
    for option in options:
        value = given(config, option)
        if value is None and size is None:
            known = ", ".join(f"{name}={shown(entry)}" for name, entry in shaped.items())
            raise CheckpointError(
                f"no shape tells the option {option}, and no published size of {body} has {known}; say it in a "
                f'config.json beside the weights: {{"{option}": ...}}'
            )
        found[option] = size[option] if value is None and size else value
    return found


def check_own(options: Mapping[str, Any], body: str, **values: Any) -> None:
    """Raises CheckpointError if a model's options differ from what a body is in its published code."""
    for name, value in values.items():
        if options.get(name, value) != value:
            raise CheckpointError(f"{body} with {name}={shown(options[name])} is in no other library")
