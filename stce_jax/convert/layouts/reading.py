"""What layouts read off a stranger's arrays to know a model's options; `said` reads config.json."""

import math
import re
from collections.abc import Callable, Container, Mapping, Sequence

import numpy as np

from stce_jax.errors import CheckpointError, shown

Arrays = Mapping[str, np.ndarray]
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


def replaced(name: str, patterns: Mapping[str, str]) -> str:
    """A name in which each regular expression of `patterns` has become what stands beside it."""
    for pattern, replacement in patterns.items():
        name = re.sub(pattern, replacement, name)
    return name


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
