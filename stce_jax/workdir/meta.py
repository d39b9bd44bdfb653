"""What a checkpoint's meta.json holds, checked: the checkpoint may be anybody's."""

import math
from collections.abc import Callable, Iterable
from typing import Any


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def _are_three(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))


def _are_metrics(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and "top1" in value and all(map(_is_number, value.values())))


def _is_guard(value: Any) -> bool:
    """Whether that is the state of a `training.guard.DivergenceGuard`, or None: of a new one."""
    if value is None:
        return True
    if not isinstance(value, dict) or value.keys() != {"losses", "skipped", "skipped_in_all"}:
        return False
    losses, *counts = value["losses"], value["skipped"], value["skipped_in_all"]
    return isinstance(losses, list) and all(map(_is_number, losses)) and all(map(_is_count, counts))


def _is_origin(value: Any) -> bool:
    """Whether that is a `training.timetable.Origin`."""
    return isinstance(value, dict) and value.keys() == {"step", "images"} and all(map(_is_count, value.values()))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


CHECKS: dict[str, Callable[[Any], bool]] = {
    "class_ids": _are_names,
    "class_names": _are_names,
    "config": lambda value: isinstance(value, dict),
    "epoch": lambda value: _is_number(value) and value >= 0,
    "fingerprint": lambda value: isinstance(value, str),
    "guard": _is_guard,
    "mean": _are_three,
    "metrics": _are_metrics,
    "origin": _is_origin,
    "salt": _is_count,
    "std": lambda value: _are_three(value) and min(value) > 0,
}


def find_problem(meta: Any, keys: Iterable[str]) -> str | None:
    """What is wrong with a meta.json, in a few words; None if nothing is.

    Args:
      meta: the JSON.
      keys: what it must have, beside "metrics"; others may be missing. All that are there are checked.
    """
    if not isinstance(meta, dict):
        return "it holds no object"
    for key in ("metrics", *keys):
        if key not in meta:
            return f"it lacks {key!r}"
    for key, is_right in CHECKS.items():
        if key in meta and not is_right(meta[key]):
            return f"{key!r} cannot be what it is"
    if {"class_ids", "class_names"} <= meta.keys() and len(meta["class_ids"]) != len(meta["class_names"]):
        return "it has not one name for each class"
    return None
