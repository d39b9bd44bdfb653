"""On the device, inside the jitted step: everything that is done to a batch between the loader and the model.

`make_augment` assembles the table `parts.PARTS`. An image's draws depend on the seed, on its position in the stream
(step x batch + its place in the batch, see `mixing.place_in_batch`) and on the part's name, the batch's on the seed,
the step and the part's name: the same for any sharding, and whatever other parts there are.

Shape letters: B batch, H W image height and width.
"""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from stce_jax.errors import ConfigError, check_range, shown
from stce_jax.recipe.erasing import random_erasing
from stce_jax.recipe.geometry import affine, rotate, shear_x, shear_y, translate_x, translate_y
from stce_jax.recipe.mixing import mix, place_in_batch, soft_label_sets, soft_targets
from stce_jax.recipe.parts import PARTS
from stce_jax.recipe.pixels import (
    autocontrast,
    brightness,
    color,
    contrast,
    equalize,
    gaussian_blur,
    grayscale,
    invert,
    posterize,
    sharpness,
    solarize,
    solarize_add,
)
from stce_jax.recipe.policy import parse_policy
from stce_jax.recipe.rand_augment import rand_augment
from stce_jax.recipe.ranks import of_any_rank
from stce_jax.recipe.transforms import color_jitter, random_flip, random_shift, three_augment

# Everything a user may want on the device comes from this module.
__all__ = [
    "affine",
    "autocontrast",
    "brightness",
    "check_normalization",
    "color",
    "color_jitter",
    "contrast",
    "equalize",
    "gaussian_blur",
    "grayscale",
    "invert",
    "make_augment",
    "mix",
    "normalize",
    "option_names",
    "parse_policy",
    "posterize",
    "rand_augment",
    "random_erasing",
    "random_flip",
    "random_shift",
    "rotate",
    "sharpness",
    "shear_x",
    "shear_y",
    "soft_label_sets",
    "soft_targets",
    "solarize",
    "solarize_add",
    "stream",
    "three_augment",
    "translate_x",
    "translate_y",
]
Augment = Callable[
    [PRNGKeyArray, Int[Array, ""], UInt8[Array, "B H W 3"], Int[Array, "B ..."]],
    tuple[Float[Array, "B H W 3"], Float[Array, "B classes"]],
]
# The parts of version 0.1.0 keep their streams: a part's key had this number in a split of the image's key.
_FIRST_STREAMS = {"flip": 0, "shift": 1, "rand_augment": 2, "three_augment": 3, "color_jitter": 4, "erase": 5}


def stream(name: str) -> int:
    """The number of a part's random stream, below 2^32: a hash of its name, but for the parts of version 0.1.0."""
    if name in _FIRST_STREAMS:
        return _FIRST_STREAMS[name]
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little") | 2**16  # never one of the first


def option_names() -> tuple[str, ...]:
    """The keys of `config.augment` that `make_augment` needs."""
    return ("label_smoothing", *(name for part in PARTS.values() for name in _options(part.make) if name != "mean"))


def _options(make: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(make).parameters)


@of_any_rank
def normalize(
    images: UInt8[Array, "*B H W 3"] | UInt8[np.ndarray, "*B H W 3"], *, mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "*B H W 3"]:
    """Scales bytes to 0..1, subtracts `mean` and divides by `std`, channel by channel; float32."""
    scale = 1.0 / (255.0 * jnp.asarray(std, jnp.float32))
    numbers: Any = images.astype(jnp.float32)
    return numbers * scale - jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)


def check_normalization(*, mean: object, std: object) -> None:
    """Raises ConfigError unless `config.augment.mean` and `.std` are None or three numbers, of std above 0."""
    for option, values, least in (("mean", mean, -10.0), ("std", std, 1e-4)):
        if values is None:
            continue
        if not isinstance(values, tuple | list) or len(values) != 3:
            raise ConfigError(
                f"config.augment.{option} is {shown(values)}; it must be three numbers, of red, green and blue"
            )
        for value in values:
            check_range(f"each of config.augment.{option}", value, least, 10)


def make_augment(
    num_classes: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    label_smoothing: float,
    offset: int = 0,
    mixed_steps: int | None = None,
    **options: Any,
) -> Augment:
    """The training augmentation: (key, step, images, labels) -> (normalised images, targets).

    Labels are int [B], or [B, classes] of 0 and 1 where an image may have several.

    Parts that are switched off (0, False or "") cost nothing. Switching one on or off changes no draw of the others.

    Args:
      num_classes: length of a target.
      mean, std: for each channel, of values scaled to 0..1.
      label_smoothing: 0..1, see `soft_targets` and `soft_label_sets`.
      offset: images by which step x batch is ahead of the position in the stream, in a run whose batch has changed.
      mixed_steps: how many steps of the run mix their batches, of the part "mix"; None: all. No other draw changes.
      options: all options of the parts and no other, see `option_names`.

    Raises:
      ConfigError: an option is out of its range, or RandAugment's policy cannot be read.
      TypeError: an option is missing or unknown.
    """
    check_range("config.augment.label_smoothing", label_smoothing, 0, 1)
    unknown = options.keys() - set(option_names())
    if unknown:
        raise TypeError(f"no part of the augmentation has an option {sorted(unknown)[0]!r}")
    given = options | {"mean": mean}
    active: dict[str, dict[str, Callable]] = {"bytes": {}, "pixels": {}, "batch": {}}
    for name, part in PARTS.items():
        missing = [option for option in _options(part.make) if option not in given]
        if missing:
            raise TypeError(f"the augmentation's part {name!r} needs the option {missing[0]!r}")
        function = part.make(**{option: given[option] for option in _options(part.make)})
        if function:
            active[part.takes][name] = function
    singles = [*active["bytes"], *active["pixels"]]

    def augment(
        key: PRNGKeyArray, step: Int[Array, ""], images: UInt8[Array, "B H W 3"], labels: Int[Array, "B ..."]
    ) -> tuple[Float[Array, "B H W 3"], Float[Array, "B classes"]]:
        image_key, batch_key = jax.random.split(key)
        batch = images.shape[0]
        places = place_in_batch(jnp.arange(batch, dtype=jnp.uint32), batch)
        positions = jnp.asarray(step).astype(jnp.uint32) * batch + places
        if offset:
            positions -= np.uint32(offset % 2**32)
        keys = _part_keys(jax.vmap(jax.random.fold_in, in_axes=(None, 0))(image_key, positions), singles)
        for name, function in active["bytes"].items():
            images = jax.vmap(function)(keys[name], images)
        normalized = normalize(images, mean=mean, std=std)
        for name, function in active["pixels"].items():
            normalized = jax.vmap(function)(keys[name], normalized)
        if labels.ndim == 1:
            targets = soft_targets(labels, num_classes, smoothing=label_smoothing)
        else:
            targets = soft_label_sets(labels, smoothing=label_smoothing)
        step_key = jax.random.fold_in(batch_key, step)
        for name, function in active["batch"].items():
            # Version 0.1.0 mixed with the step's own key.
            own = step_key if name == "mix" else jax.random.fold_in(step_key, stream(name))
            changed = function(own, normalized, targets)
            if name == "mix" and mixed_steps is not None:  # drawn all the same: GPUs would ask the host for a branch
                mixes = jnp.asarray(step) < mixed_steps
                changed = [jnp.where(mixes, new, old) for new, old in zip(changed, (normalized, targets), strict=True)]
            normalized, targets = changed
        return normalized, targets

    return augment


def _part_keys(keys: PRNGKeyArray, names: Sequence[str]) -> dict[str, PRNGKeyArray]:
    """{part: keys [B]} of each image's key, [B]; all are derived at once."""
    if not names:
        return {}
    numbers = jnp.array([stream(name) for name in names], jnp.uint32)
    own = jax.vmap(lambda key: jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers), out_axes=1)(keys)
    return dict(zip(names, own, strict=True))
