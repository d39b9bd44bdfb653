"""Which values the options of the augmentation may have. Starts no JAX."""

from collections.abc import Mapping
from typing import Any

from stce_jax.errors import check_pair, check_range
from stce_jax.recipe.policy import parse_policy

# Minimum and maximum; None: no maximum.
RANGES: dict[str, tuple[float, float | None]] = {
    "augment.flip": (0, 1),
    "augment.shift": (0, None),
    "augment.color_jitter": (0, 1),
    "augment.erase": (0, 1),
    "augment.mixup": (0, None),
    "augment.cutmix": (0, None),
    "augment.switch_probability": (0, 1),
    "augment.label_smoothing": (0, 1),
}
# Options that are pairs (minimum, maximum) above 0, and their upper bound.
PAIRS: dict[str, float] = {
    "augment.erase_area": 1.0,
    "augment.erase_ratio": float("inf"),
}


def check_options(options: Mapping[str, Any]) -> None:
    """Checks the augmentation's options among a config's, whose keys are such as "augment.flip".

    Raises:
      ConfigError: a value is out of range, or RandAugment's policy cannot be read.
    """
    for key, (low, high) in RANGES.items():
        check_range(key, options[key], low, high)
    for key, high in PAIRS.items():
        check_pair(key, options[key], high)
    if options["augment.rand_augment"]:
        parse_policy(options["augment.rand_augment"])
