"""RandAugment (Cubuk et al. 2020) as timm and DeiT have it, on the device: random chains of operations on one image.

Under vmap a branch for each operation would compute all of them. So an operation is described by numbers, and each step
of the chain is one geometric transform, one lookup table and one blend; those that the operation does not need are the
identity. `policy` reads how often and how strongly operations are applied.

Shape letters: H W image height and width.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32, PRNGKeyArray, UInt8

from stce_jax.recipe import geometry, pixels
from stce_jax.recipe.pixels import Scalar
from stce_jax.recipe.policy import WEIGHTS, Policy, parse_policy

GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
TABLES = ("autocontrast", "equalize", "invert", "posterize", "solarize", "solarize_add")
ENHANCEMENTS = ("color", "contrast", "brightness", "sharpness")
OPERATIONS = GEOMETRIC + TABLES + ENHANCEMENTS


class Draws(NamedTuple):
    """What was drawn for one image: n operations, in the order in which they are applied.

    Attributes:
      operation: index into OPERATIONS.
      applied: an operation that is not applied changes nothing.
      magnitude: 0..policy.max_magnitude.
      sign: -1 or 1, for those operations that have two directions.
    """

    operation: Int32[Array, "n"]
    applied: Bool[Array, "n"]
    magnitude: Float[Array, "n"]
    sign: Float[Array, "n"]


def draw(key: PRNGKeyArray, *, policy: Policy) -> Draws:
    """Draws the operations for one image, 1 or more, as `policy` says."""
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
        jnp.clip(magnitude, 0.0, policy.max_magnitude),
        jax.random.rademacher(sign_key, shape, jnp.float32),
    )


def amount(
    operation: Int[Array, ""], *, magnitude: Scalar, sign: Scalar, increasing: bool, height: int, width: int
) -> Float[Array, ""]:
    """What one operation's magnitude means, in the unit of the operation's option in `pixels` or `geometry`.

    Args:
      operation: index into OPERATIONS.
      magnitude: 0 or more; 10 is strong.
      sign: -1 or 1.
      increasing: whether a larger magnitude always changes the image more. Otherwise posterizing and solarizing
        change less with it, and the blends go from factor 0.1 to 1.9.
      height, width: of the image, in pixels; translations are shares of them.
    """
    level = jnp.asarray(magnitude) / 10.0
    bits, threshold = jnp.floor(4.0 * level), jnp.minimum(jnp.floor(256.0 * level), 256.0)
    factor = 0.1 + 1.8 * level
    if increasing:
        bits, threshold = 4.0 - bits, 256.0 - threshold
        factor = jnp.maximum(1.0 + sign * 0.9 * level, 0.1)
    meanings: dict[str, Scalar] = {
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


def rand_augment(
    key: PRNGKeyArray, image: UInt8[Array, "H W 3"], *, policy: str, fill: geometry.Color
) -> UInt8[Array, "H W 3"]:
    """Applies randomly drawn operations to an image.

    Args:
      key: of this image.
      image: 0..255.
      policy: text for `parse_policy`, such as `rand-m9-mstd0.5-inc1`.
      fill: 0..255 for each channel; for pixels that come from outside the image.

    Raises:
      ConfigError: the policy cannot be read.
    """
    parsed = parse_policy(policy)
    height, width, _ = image.shape
    operations, applied, magnitudes, signs = draw(key, policy=parsed)

    def step(place: Int32[Array, ""], image: UInt8[Array, "H W 3"]) -> UInt8[Array, "H W 3"]:
        strength = amount(
            operations[place],
            magnitude=magnitudes[place],
            sign=signs[place],
            increasing=parsed.increasing,
            height=height,
            width=width,
        )
        return apply(image, operation=jnp.where(applied[place], operations[place], -1), amount=strength, fill=fill)

    # A loop: compilers fuse unrolled steps, and repeat the earlier ones for each pixel that a later one reads.
    return jax.lax.fori_loop(0, parsed.operations, step, image)


def apply(
    image: UInt8[Array, "H W 3"], *, operation: Scalar, amount: Scalar, fill: geometry.Color
) -> UInt8[Array, "H W 3"]:
    """Applies one operation to an image.

    Args:
      image: 0..255.
      operation: index into OPERATIONS, or -1 for none.
      amount: the operation's option, as `amount` gives it.
      fill: 0..255 for each channel.
    """
    # All three start from the same image, not from one another, again because of fusion.
    warped = warp(image, operation=operation, amount=amount, fill=fill)
    recolored = recolor(image, operation=operation, amount=amount)
    enhanced = enhance(image, operation=operation, amount=amount)
    return jnp.where(_is(operation, *GEOMETRIC), warped, jnp.where(_is(operation, *TABLES), recolored, enhanced))


def warp(
    image: UInt8[Array, "H W 3"], *, operation: Scalar, amount: Scalar, fill: geometry.Color
) -> UInt8[Array, "H W 3"]:
    """The geometric part of `apply`: one bicubic transform, the identity for other operations.

    `operation` -1..14, `amount` and `fill` as for `apply`.
    """
    height, width, _ = image.shape
    a, b, c, d, e, f = geometry.rotation(height, width, degrees=jnp.where(_is(operation, "rotate"), amount, 0.0))
    b += jnp.where(_is(operation, "shear_x"), amount, 0.0)
    c += jnp.where(_is(operation, "translate_x"), amount, 0.0)
    d += jnp.where(_is(operation, "shear_y"), amount, 0.0)
    f += jnp.where(_is(operation, "translate_y"), amount, 0.0)
    return geometry.affine(image, matrix=(a, b, c, d, e, f), fill=fill)


def recolor(image: UInt8[Array, "H W 3"], *, operation: Scalar, amount: Scalar) -> UInt8[Array, "H W 3"]:
    """The part of `apply` that maps values to values: one lookup table, the identity for other operations.

    `operation` -1..14 and `amount` as for `apply`.
    """

    def table(counts: pixels.Counts) -> pixels.Table:  # of one channel
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


def enhance(image: UInt8[Array, "H W 3"], *, operation: Scalar, amount: Scalar) -> UInt8[Array, "H W 3"]:
    """The part of `apply` that blends the image with a degenerate one; other operations by factor 1: the image.

    `operation` -1..14 and `amount` as for `apply`.
    """
    degenerate: Array = jnp.zeros((), jnp.uint8)
    factor = jnp.where(_is(operation, *ENHANCEMENTS), amount, 1.0)
    candidates = {
        "contrast": pixels.mean_luma(image),
        "color": pixels.luma(image)[:, :, None],
        "sharpness": pixels.smooth(image),
    }
    for name, candidate in candidates.items():
        degenerate = jnp.where(_is(operation, name), candidate.astype(jnp.uint8), degenerate)
    return pixels.blend(degenerate, image, factor=factor)


def _is(operation: Scalar, *names: str) -> Bool[Array, ""]:
    """Whether an operation is one of the named ones."""
    return jnp.isin(operation, jnp.array([OPERATIONS.index(name) for name in names]))
