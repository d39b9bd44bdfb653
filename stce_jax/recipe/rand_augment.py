"""RandAugment (Cubuk et al. 2020) as timm and DeiT have it, on the device: random chains of operations on one image.

`parse_policy` reads timm's way of writing it down, such as `rand-m9-mstd0.5-inc1`. Under vmap a branch for each
operation would compute all of them. So an operation is described by numbers, and each step of the chain is at most one
geometric transform, one lookup table and one blend; those that the operation does not need change nothing.
"""

import dataclasses
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp

from stce_jax.errors import ConfigError
from stce_jax.recipe import pixels

GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
TABLES = ("autocontrast", "equalize", "invert", "posterize", "solarize", "solarize_add")
ENHANCEMENTS = ("color", "contrast", "brightness", "sharpness")
OPERATIONS = GEOMETRIC + TABLES + ENHANCEMENTS
# What option w0 draws with; from timm.
WEIGHTS = {
    "rotate": 0.3,
    "shear_x": 0.2,
    "shear_y": 0.2,
    "translate_x": 0.1,
    "translate_y": 0.1,
    "color": 0.025,
    "sharpness": 0.025,
    "autocontrast": 0.025,
    "solarize": 0.005,
    "solarize_add": 0.005,
    "contrast": 0.005,
    "brightness": 0.005,
    "equalize": 0.005,
}


@dataclasses.dataclass(frozen=True)
class Policy:
    """How to draw operations. In brackets the option that sets it.

    Attributes:
      operations: how many are drawn for an image, 1 or more (n).
      magnitude: mean magnitude, 0..most (m).
      deviation: standard deviation of the magnitudes, 0 or more; infinite: uniform over 0..magnitude (mstd).
      most: the magnitude is clipped to 0..most (mmax). All meanings are scaled such that 10 is strong.
      increasing: whether a greater magnitude always changes the image more (inc).
      probability: of each drawn operation to be applied, 0..1 (p).
      weighted: whether to draw with WEIGHTS and without replacement, rather than alike and with replacement (w).
    """

    operations: int = 2
    magnitude: float = 10.0
    deviation: float = 0.0
    most: float = 10.0
    increasing: bool = False
    probability: float = 0.5
    weighted: bool = False


def parse_policy(text):
    """Reads a policy: `rand` and then options in any order, joined by `-`, each a name and a number.

    n: operations per image, from 1; m: magnitude, from 0 to mmax; mstd: its standard deviation, from 0, uniform over
    0..m if above 100; mmax: greatest magnitude, 0 to 100; inc: 0 or 1; p: probability, 0 to 1; w: 0, the only set of
    weights there is. Those left out are the defaults of `Policy`. As in timm, but that `inc0` means what it says.

    Returns:
      The `Policy`.

    Raises:
      ConfigError: no such policy, option or value.
    """
    first, *options = text.split("-")
    if first != "rand":
        raise ConfigError(f"RandAugment policy {text!r} does not begin with 'rand'; try 'rand-m9-mstd0.5-inc1'")
    numbers = {}
    for option in options:
        match = re.fullmatch(r"(n|m|mstd|mmax|inc|p|w)(\d+\.?\d*|\.\d+)", option)
        if not match:
            raise ConfigError(
                f"RandAugment policy {text!r}: {option!r} is no option; there are n, m, mstd, mmax, inc, p and w, each "
                "followed by a number"
            )
        if match[1] in numbers:
            raise ConfigError(f"RandAugment policy {text!r}: {option!r} sets {match[1]!r} a second time")
        numbers[match[1]] = float(match[2])
    most = numbers.get("mmax", Policy.most)
    ranges = {
        "n": (1, len(WEIGHTS) if "w" in numbers else 100),
        "m": (0, most),
        "mstd": (0, math.inf),
        "mmax": (0, 100),
        "inc": (0, 1),
        "p": (0, 1),
        "w": (0, 0),
    }
    for name, number in numbers.items():
        low, high = ranges[name]
        whole = name in ("n", "inc", "w")
        if not low <= number <= high or (whole and number != int(number)):
            kind = "a whole number" if whole else "a number"
            raise ConfigError(f"RandAugment policy {text!r}: {name!r} must be {kind} from {low} to {high:g}")
    return Policy(
        operations=int(numbers.get("n", Policy.operations)),
        magnitude=numbers.get("m", min(Policy.magnitude, most)),
        deviation=math.inf if numbers.get("mstd", 0) > 100 else numbers.get("mstd", Policy.deviation),
        most=most,
        increasing=bool(numbers.get("inc", Policy.increasing)),
        probability=numbers.get("p", Policy.probability),
        weighted="w" in numbers,
    )


class Draws(NamedTuple):
    """What was drawn for one image, an entry an operation, in their order.

    Attributes:
      operation: int32 [n], index into OPERATIONS.
      applied: bool [n]; an operation that is not applied changes nothing.
      magnitude: float32 [n], 0..most.
      sign: float32 [n], -1 or 1, for those operations that have two directions.
    """

    operation: jax.Array
    applied: jax.Array
    magnitude: jax.Array
    sign: jax.Array


def draw(key, *, policy):
    """Draws the operations for one image, 1 or more, by `policy`, a `Policy`; returns `Draws`."""
    operation_key, applied_key, magnitude_key, sign_key = jax.random.split(key, 4)
    shape = (policy.operations,)
    if policy.weighted:
        weights = jnp.array([WEIGHTS.get(name, 0.0) for name in OPERATIONS])
        operation = jax.random.choice(
            operation_key, len(OPERATIONS), shape, replace=False, p=weights / weights.sum()
        ).astype(jnp.int32)
    else:
        operation = jax.random.randint(operation_key, shape, 0, len(OPERATIONS))
    if policy.deviation == math.inf:
        magnitude = jax.random.uniform(magnitude_key, shape, maxval=policy.magnitude)
    else:
        magnitude = policy.magnitude + policy.deviation * jax.random.normal(magnitude_key, shape)
    return Draws(
        operation,
        jax.random.bernoulli(applied_key, policy.probability, shape),
        jnp.clip(magnitude, 0.0, policy.most),
        jax.random.rademacher(sign_key, shape, jnp.float32),
    )


def amount(operation, *, magnitude, sign, increasing, height, width):
    """What one operation's magnitude means: float32, in the unit of the operation's option in `pixels`.

    Args:
      operation: index into OPERATIONS.
      magnitude: 0 or more; 10 is strong.
      sign: -1 or 1.
      increasing: whether a greater magnitude always changes the image more. Otherwise posterizing and solarizing
        change less with it, and the blends go from factor 0.1 to 1.9.
      height, width: of the image, in pixels; translations are shares of them.
    """
    level = magnitude / 10.0
    bits, threshold = jnp.floor(4.0 * level), jnp.minimum(jnp.floor(256.0 * level), 256.0)
    factor = 0.1 + 1.8 * level
    if increasing:
        bits, threshold = 4.0 - bits, 256.0 - threshold
        factor = jnp.maximum(1.0 + sign * 0.9 * level, 0.1)
    meanings = {
        "rotate": sign * 30.0 * level,
        "posterize": jnp.clip(bits, 0.0, 8.0),
        "solarize": threshold,
        "solarize_add": jnp.minimum(jnp.floor(110.0 * level), 128.0),
        "color": factor,
        "contrast": factor,
        "brightness": factor,
        "sharpness": factor,
        "shear_x": sign * 0.3 * level,
        "shear_y": sign * 0.3 * level,
        "translate_x": sign * 0.45 * level * width,
        "translate_y": sign * 0.45 * level * height,
    }
    return jnp.stack([jnp.asarray(meanings.get(name, 0.0), jnp.float32) for name in OPERATIONS])[operation]


def rand_augment(key, image, *, policy, fill):
    """Applies randomly drawn operations to an image.

    Args:
      key: PRNG key.
      image: uint8 [H, W, 3].
      policy: text for `parse_policy`, such as `rand-m9-mstd0.5-inc1`.
      fill: 0..255 for each of the three channels; for pixels that come from outside the image.

    Returns:
      uint8 [H, W, 3].

    Raises:
      ConfigError: no such policy.
    """
    policy = parse_policy(policy)
    height, width, _ = image.shape
    operations, applied, magnitudes, signs = draw(key, policy=policy)

    def step(place, image):
        strength = amount(
            operations[place],
            magnitude=magnitudes[place],
            sign=signs[place],
            increasing=policy.increasing,
            height=height,
            width=width,
        )
        return apply(image, operation=jnp.where(applied[place], operations[place], -1), amount=strength, fill=fill)

    # A loop: compilers fuse unrolled steps, and compute the earlier ones anew for each pixel that is looked at.
    return jax.lax.fori_loop(0, policy.operations, step, image)


def apply(image, *, operation, amount, fill):
    """Applies one operation to an image.

    Args:
      image: uint8 [H, W, 3].
      operation: index into OPERATIONS, or -1 for none; may be traced.
      amount: the operation's option, as `amount` gives it; may be traced.
      fill: 0..255 for each of the three channels.

    Returns:
      uint8 [H, W, 3].
    """
    # All three start from the same image, not from one another: again for the sake of fusion.
    warped = warp(image, operation=operation, amount=amount, fill=fill)
    recolored = recolor(image, operation=operation, amount=amount)
    enhanced = enhance(image, operation=operation, amount=amount)
    return jnp.where(_is(operation, *GEOMETRIC), warped, jnp.where(_is(operation, *TABLES), recolored, enhanced))


def warp(image, *, operation, amount, fill):
    """The geometric part of `apply`: one bicubic transform, the identity for other operations.

    `operation` -1..14, `amount` and `fill` as for `apply`.
    """
    height, width, _ = image.shape
    a, b, c, d, e, f = pixels.rotation(height, width, degrees=jnp.where(_is(operation, "rotate"), amount, 0.0))
    b += jnp.where(_is(operation, "shear_x"), amount, 0.0)
    c += jnp.where(_is(operation, "translate_x"), amount, 0.0)
    d += jnp.where(_is(operation, "shear_y"), amount, 0.0)
    f += jnp.where(_is(operation, "translate_y"), amount, 0.0)
    return pixels.affine(image, matrix=(a, b, c, d, e, f), fill=fill)


def recolor(image, *, operation, amount):
    """The part of `apply` that maps values to values: one lookup table, the identity for other operations.

    `operation` -1..14 and `amount` as for `apply`.
    """

    def table(counts):  # of one channel, int32 [256]
        table = values = jnp.arange(256, dtype=jnp.uint8)
        candidates = {
            "autocontrast": pixels.autocontrast_table(counts),
            "equalize": pixels.equalize_table(counts),
            "invert": pixels.invert(values),
            "posterize": pixels.posterize(values, bits=amount),
            "solarize": pixels.solarize(values, threshold=amount),
            "solarize_add": pixels.solarize_add(values, amount=amount),
        }
        for name, candidate in candidates.items():
            table = jnp.where(_is(operation, name), candidate, table)
        return table

    return pixels.look_up(image, pixels.by_channel(table, pixels.histogram(image)))


def enhance(image, *, operation, amount):
    """The part of `apply` that blends the image with a degenerate one; other operations by factor 1: the image.

    `operation` -1..14 and `amount` as for `apply`.
    """
    degenerate, factor = jnp.zeros((), jnp.uint8), jnp.where(_is(operation, *ENHANCEMENTS), amount, 1.0)
    candidates = {
        "contrast": pixels.mean_luma(image),
        "color": pixels.luma(image)[:, :, None],
        "sharpness": pixels.smooth(image),
    }
    for name, candidate in candidates.items():
        degenerate = jnp.where(_is(operation, name), candidate.astype(jnp.uint8), degenerate)
    return pixels.blend(degenerate, image, factor=factor)


def _is(operation, *names):
    """Whether an operation is one of the named ones."""
    return jnp.isin(operation, jnp.array([OPERATIONS.index(name) for name in names]))
