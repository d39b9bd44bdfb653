"""Optimizer states from one optimizer to another whose parts with a state are the same.

Clipping, weight decay and the like have none. So their presence, and how parts are nested in one another, changes where
an array stands in the state, not what it is.
"""

from collections.abc import Callable
from typing import Any

import jax

Name = tuple[str, ...]


def carry_over(expected: Any, found: Any) -> tuple[Any, Callable[[Any], Any]]:
    """How to read a state in the form in which it was written.

    Args:
      expected: the state that is needed, a pytree of ShapeDtypeStructs or arrays.
      found: the one that was written: nested dicts and lists, as Orbax tells of it; its leaves have a `shape`.

    Returns:
      (target, arrange): a tree of the form of `found` with the leaves of `expected`, to restore; and the function that
      makes of the restored tree one of the form of `expected`.

    Raises:
      ValueError: they have other parts; its text names the first.
    """
    own, theirs = _numbered(expected), _numbered(found)
    if missing := sorted(own.keys() - theirs.keys()):
        raise ValueError(f"{_spelled(missing[0])} is not in it")
    if surplus := sorted(theirs.keys() - own.keys()):
        raise ValueError(f"{_spelled(surplus[0])} is in it")
    leaves, form = jax.tree.flatten(expected)
    written, written_form = jax.tree.flatten(found)
    for name, number in own.items():
        if tuple(written[theirs[name]].shape) != tuple(leaves[number].shape):
            raise ValueError(f"{_spelled(name)} is {tuple(written[theirs[name]].shape)} in it")
    ours = {theirs[name]: number for name, number in own.items()}
    target = jax.tree.unflatten(written_form, [leaves[ours[number]] for number in range(len(written))])

    def arrange(restored: Any) -> Any:
        read = jax.tree.leaves(restored)
        places = {number: read[place] for place, number in ours.items()}
        return jax.tree.unflatten(form, [places[number] for number in range(len(leaves))])

    return target, arrange


def _numbered(tree: Any) -> dict[tuple[Name, int], int]:
    """{(name, how many leaves of that name come before): number of the leaf} of a tree.

    A name is a path without what stands only for a place in a chain of parts.
    """
    seen: dict[Name, int] = {}
    numbered = {}
    for number, (path, _) in enumerate(jax.tree.leaves_with_path(tree)):
        name = tuple(word for key in path if (word := _word(key)) is not None)
        numbered[name, seen.setdefault(name, 0)] = number
        seen[name] += 1
    return numbered


def _word(key: Any) -> str | None:
    """The name in a key of a path; None for a place in a list."""
    return None if isinstance(key, jax.tree_util.SequenceKey) else str(getattr(key, "name", getattr(key, "key", key)))


def _spelled(name: tuple[Name, int]) -> str:
    return "/".join(name[0])
