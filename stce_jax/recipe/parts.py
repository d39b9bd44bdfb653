"""The parts of the augmentation, one table.

To add a part, write a function as below, in a file of its own if it is long, enter it in `PARTS`, and give its options
values in configs/default.py. The function takes those options of `config.augment` by name, and `mean` if it needs the
images' mean colour. It checks them (ConfigError) and returns what the part does, or None if they switch it off. What it
does takes its random key first and draws from that alone.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

from stce_jax.errors import check_pair, check_range, check_whole
from stce_jax.recipe import erasing, mixing, policy, transforms
from stce_jax.recipe import rand_augment as random_operations

Pair = tuple[float, float]  # minimum, maximum


class Part(NamedTuple):
    """One part of the augmentation.

    Attributes:
      make: function of the part's options, see above.
      takes: what the part works on: "bytes", one image uint8 [H, W, 3]; "pixels", one normalised image float32
        [H, W, 3]; "batch", images float32 [B, H, W, 3] and targets [B, classes]. It returns what it takes.
    """

    make: Callable[..., Callable | None]
    takes: Literal["bytes", "pixels", "batch"]


def flip(*, flip: float) -> Callable | None:
    """Mirrors left to right with probability `flip`, 0..1."""
    check_range("config.augment.flip", flip, 0, 1)
    return functools.partial(transforms.random_flip, probability=flip) if flip else None


def shift(*, shift: int) -> Callable | None:
    """Moves by up to `shift` pixels, 0 to 1,024: images are padded by as many on each side."""
    check_whole("config.augment.shift", shift, 0, 1024)
    return functools.partial(transforms.random_shift, pixels=shift) if shift else None


def rand_augment(*, rand_augment: str, mean: tuple[float, float, float]) -> Callable | None:
    """RandAugment with the policy `rand_augment`; the colour `mean`, 0..1 for each channel, fills what comes in."""
    if not rand_augment:
        return None
    policy.parse_policy(rand_augment)  # an error now, not when the step is compiled
    red, green, blue = (round(255 * channel) for channel in mean)
    return functools.partial(random_operations.rand_augment, policy=rand_augment, fill=(red, green, blue))


def three_augment(*, three_augment: bool) -> Callable | None:
    """DeiT III's grayscale, solarize or blur, where `three_augment` is true."""
    return transforms.three_augment if three_augment else None


def color_jitter(*, color_jitter: float) -> Callable | None:
    """Changes brightness, contrast and colour by up to `color_jitter`, 0..1."""
    check_range("config.augment.color_jitter", color_jitter, 0, 1)
    return functools.partial(transforms.color_jitter, strength=color_jitter) if color_jitter else None


def erase(*, erase: float, erase_area: Pair, erase_ratio: Pair) -> Callable | None:
    """Erases a box with probability `erase`, 0..1; `erase_area` and `erase_ratio` as in `random_erasing`."""
    check_range("config.augment.erase", erase, 0, 1)
    check_pair("config.augment.erase_area", erase_area, 1e-6, 1)
    check_pair("config.augment.erase_ratio", erase_ratio, 0.01, 100)
    if not erase:
        return None
    return functools.partial(erasing.random_erasing, probability=erase, area=erase_area, ratio=erase_ratio)


def mix(*, mixup: float, cutmix: float, switch_probability: float) -> Callable | None:
    """Mixes the batch: `mixup`, `cutmix`, 0 or 0.001..1000, and `switch_probability`, 0..1, as in `mixing.mix`."""
    for option, alpha in (("mixup", mixup), ("cutmix", cutmix)):
        check_range(f"config.augment.{option}", alpha, 0.001, 1000, or_zero=True)  # beyond, all draws are alike
    check_range("config.augment.switch_probability", switch_probability, 0, 1)
    if not mixup and not cutmix:
        return None
    return functools.partial(mixing.mix, mixup=mixup, cutmix=cutmix, switch_probability=switch_probability)


# In the order in which they are applied: all that take bytes, then all that take pixels, then all that take the batch.
PARTS: dict[str, Part] = {
    "flip": Part(flip, "bytes"),
    "shift": Part(shift, "bytes"),
    "rand_augment": Part(rand_augment, "bytes"),
    "three_augment": Part(three_augment, "bytes"),
    "color_jitter": Part(color_jitter, "bytes"),
    "erase": Part(erase, "pixels"),
    "mix": Part(mix, "batch"),
}
