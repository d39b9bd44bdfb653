"""Whether arrays that were read are those that a model needs."""

import re
from typing import Any

from flax import traverse_util


def first_mismatch(expected: Any, found: Any) -> str | None:
    """One line on the first array that two trees do not agree on, or None if every shape agrees.

    First by the order of blocks and modules, parameters before statistics. What is missing or differs comes before
    what is surplus.

    Args:
      expected: what the model needs: nested dicts, or one flat dict with paths such as "params/norm/scale"; its leaves
        are shapes, or anything that has a `shape`.
      found: what was read, in the same form.
    """
    expected, found = (traverse_util.flatten_dict(tree, sep="/") for tree in (expected, found))
    expected, found = (
        {path: tuple(getattr(leaf, "shape", leaf)) for path, leaf in tree.items()} for tree in (expected, found)
    )
    for path in sorted(expected, key=_sort_key):
        if path not in found:
            return f"{path} is not in it, the model wants {expected[path]}"
        if found[path] != expected[path]:
            return f"{path} is {found[path]} in it, the model wants {expected[path]}"
    for path in sorted(found.keys() - expected.keys(), key=_sort_key):
        return f"{path} is {found[path]} in it, the model has none"
    return None


def _sort_key(path: str) -> tuple[bool, list[str | int]]:
    """Parameters first, and blocks_2 before blocks_10."""
    words = [int(word) if word.isdecimal() else word for word in re.split(r"(\d+)", path)]
    return not path.startswith("params/"), words
