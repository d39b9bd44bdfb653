"""A new run sees images as the weights that it begins with did, unless its config says otherwise."""

from typing import Any

from ml_collections import config_dict

from stce_jax.convert.preprocessing import Preprocessing, numbers
from stce_jax.data.resizing import INTERPOLATIONS

# Key of `config.augment` -> what weights know of it.
FOLLOWED = {"mean": "mean", "std": "std", "eval_interpolation": "interpolation"}
CLOSE = 1e-6  # means and standard deviations that are equal but for their last digits


def follow(
    config: config_dict.ConfigDict, preprocessing: Preprocessing, mean: Any, std: Any
) -> tuple[config_dict.ConfigDict, list[str], list[str]]:
    """The config with the preprocessing that belongs to weights, where it leaves that open and its own would differ.

    Args:
      config: of a new run.
      preprocessing: of the weights; what is None in it changes nothing.
      mean, std: those of the run's pixels by this config.

    Returns:
      (config, lines on what follows the weights, lines on what differs from them as the config says otherwise).
    """
    actual = {"mean": mean, "std": std, "eval_interpolation": config.augment.eval_interpolation or INTERPOLATIONS[0]}
    taken: dict[str, Any] = {}
    differing = []
    for key, known in FOLLOWED.items():
        wanted = getattr(preprocessing, known)
        if wanted is None or _equal(wanted, actual[key]):
            continue
        if config.augment[key] is None:
            taken[key] = wanted
        else:
            differing.append(f"{key} is {_text(actual[key])}, the weights were trained with {_text(wanted)}")
    fraction, own = preprocessing.crop_fraction, config.augment.eval_crop_fraction
    if fraction is not None and abs(fraction - own) > 1e-3:
        differing.append(f"eval_crop_fraction is {own:g}, the weights were evaluated with {fraction:g}")
    if not taken:
        return config, [], differing
    changed = config.copy_and_resolve_references().unlock()
    for key, value in taken.items():
        changed.augment[key] = value
    words = ", ".join(f"augment.{key} {_text(value)}" for key, value in taken.items())
    return changed.lock(), [f"as the weights were trained: {words}"], differing


def keep(config: config_dict.ConfigDict, saved: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """The config of a run that is resumed, with what its start took from the weights: see `follow`."""
    if not config.init_from or config.init_from != saved.init_from:
        return config
    open_keys = [key for key in FOLLOWED if config.augment[key] is None and saved.augment[key] is not None]
    if not open_keys:
        return config
    changed = config.copy_and_resolve_references().unlock()
    for key in open_keys:
        changed.augment[key] = saved.augment[key]
    return changed.lock()


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    return all(abs(left - right) <= CLOSE for left, right in zip(one, other, strict=True))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else numbers(value)
