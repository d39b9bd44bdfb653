"""What a checkpoint's meta.json holds, checked: the checkpoint may be anybody's.

Shape letters: K classes.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import config_dict

from stce_jax.data.dataset import Dataset
from stce_jax.errors import ConfigError, DataError
from stce_jax.workdir import config as configuration
from stce_jax.workdir.score import score_name

IMPORTED = "imported"  # in place of the fingerprint of training images, for weights of `stce import`


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def _are_three(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))


def _are_metrics(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict) and score_name(value) is not None and all(map(_is_number, value.values()))
    )


def _is_guard(value: Any) -> bool:
    """Whether that is the state of a `training.guard.DivergenceGuard`."""
    if not isinstance(value, dict) or value.keys() != {"losses", "skipped", "skipped_in_all"}:
        return False
    losses, *counts = value["losses"], value["skipped"], value["skipped_in_all"]
    return isinstance(losses, list) and all(map(_is_number, losses)) and all(map(_is_count, counts))


def _is_origin(value: Any) -> bool:
    """Whether that is a `training.timetable.Origin`."""
    return isinstance(value, dict) and value.keys() == {"step", "images"} and all(map(_is_count, value.values()))


def _is_patience(value: Any) -> bool:
    """Whether that is the state of a `training.patience.Patience`."""
    if not isinstance(value, dict) or value.keys() != {"metric", "best", "epoch", "waited"}:
        return False
    best = value["best"] is None or _is_number(value["best"])
    return best and isinstance(value["metric"], str) and _is_number(value["epoch"]) and _is_count(value["waited"])


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


CHECKS: dict[str, Callable[[Any], bool]] = {
    "class_ids": _are_names,
    "class_names": _are_names,
    "class_weights": lambda value: isinstance(value, list) and all(map(_is_number, value)),
    "config": lambda value: isinstance(value, dict),
    "epoch": lambda value: _is_number(value) and value >= 0,
    "fingerprint": lambda value: isinstance(value, str),
    "guard": _is_guard,
    "mean": _are_three,
    "metrics": _are_metrics,
    "origin": _is_origin,
    "patience": _is_patience,
    "salt": _is_count,
    "std": lambda value: _are_three(value) and min(value) > 0,
}
OPTIONAL = {"class_weights", "origin", "patience"}  # of runs that have weights; of versions after 0.1.0


def find_problem(meta: Any, keys: Iterable[str]) -> str | None:
    """What is wrong with a meta.json, in a few words; None if nothing is.

    Args:
      meta: the JSON.
      keys: what the caller uses of it, beside "metrics"; what else it holds is not looked at.
    """
    if not isinstance(meta, dict):
        return "it holds no object"
    used = {"metrics", *keys}
    for key in used:
        if key not in meta:
            return f"it lacks {key!r}"
    for key in sorted(used | (OPTIONAL & meta.keys())):
        if not CHECKS[key](meta[key]):
            return f"{key!r} cannot be what it is"
    if {"class_ids", "class_names"} <= used and len(meta["class_ids"]) != len(meta["class_names"]):
        return "it has not one name for each class"
    return None


def checkpoint_meta(
    config: config_dict.ConfigDict, dataset: Dataset, class_weights: Float[np.ndarray, "K"] | None = None
) -> dict[str, Any]:
    """What a checkpoint says besides arrays and its epoch, so that it can be used by itself."""
    weights = {} if class_weights is None else {"class_weights": class_weights.tolist()}
    return {
        "config": configuration.to_dict(config),
        "class_ids": list(dataset.class_ids),
        "class_names": list(dataset.class_names),
        "fingerprint": dataset.fingerprint,
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        **weights,
    }


def check_fingerprint(meta: dict[str, Any], dataset: Dataset) -> None:
    """Refuses to resume with other images than a checkpoint was trained on.

    Raises:
      DataError: the fingerprints differ.
    """
    if meta["fingerprint"] != dataset.fingerprint:
        raise DataError(
            f"the images are not those the run was trained on: their fingerprint is {dataset.fingerprint[:12]}, "
            f"the checkpoint's is {meta['fingerprint'][:12]}; give the --data_dir it began with, or another --workdir"
        )


def check_class_weights(meta: dict[str, Any], own: dict[str, Any], *, allow_change: bool) -> None:
    """Refuses to resume with the same option of class weights but other weights: their file has changed.

    Args:
      meta: of the checkpoint, its config read.
      own: of `checkpoint_meta`, of the run that resumes.
      allow_change: take them all the same.

    Raises:
      ConfigError: the weights differ.
    """
    name, before, now = own["config"]["class_weights"], meta.get("class_weights"), own.get("class_weights")
    if meta["config"]["class_weights"] == name and before != now and not allow_change:
        raise ConfigError(
            f"the class weights in {name} are not those the run was trained with; put the file back, give another "
            "--workdir, or --allow_config_change to continue with these"
        )
