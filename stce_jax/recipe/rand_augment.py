"""RandAugment (Cubuk et al. 2020) as timm and DeiT have it, on the device: random chains of operations on one image.

Under vmap a branch for each operation would compute all of them. So an operation is described by numbers, and each step
of the chain is one geometric transform, one lookup table and one blend; those that the operation does not need are the
identity. Or, under vmap, each image gets only the part that it drew, see `sorted_operations`. `policy` reads how often
and how strongly operations are applied.

Shape letters: B batch, H W image height and width.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32, Num, PRNGKeyArray, UInt8

from stce_jax.platform.backends import by_backend
from stce_jax.recipe import drawn, geometry, pixels
from stce_jax.recipe.pixels import Scalar
from stce_jax.recipe.policy import WEIGHTS, Policy, parse_policy

GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
TABLES = ("autocontrast", "equalize", "invert", "posterize", "solarize", "solarize_add")
ENHANCEMENTS = ("color", "contrast", "brightness", "sharpness")
OPERATIONS = GEOMETRIC + TABLES + ENHANCEMENTS
COUNTED = ("autocontrast", "equalize")  # tables that need a histogram
# How images under vmap are computed, as `with sorted_operations(...):` around what is traced says. True: each by the
# part that it drew. False: each by all parts. None: the first on CPUs, where it was measured to be faster, if each
# device of this one process has whole groups; a GPU waits for the host at each pass of a loop, and was not measured.
sorted_operations = jax.make_user_context(None)


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
    single = jax.custom_batching.custom_vmap(functools.partial(_to_one, fill=fill))
    several = jax.custom_batching.custom_vmap(functools.partial(_to_several, fill=fill))

    @single.def_vmap
    def of_batch(size: int, batched: list[bool], *operands: Array) -> tuple[Array, bool]:
        return several(*_with_batch(size, batched, operands)), True

    @several.def_vmap
    def of_batches(size: int, batched: list[bool], *operands: Array) -> tuple[Array, bool]:
        operands = _with_batch(size, batched, operands)
        made = several(*(each.reshape(-1, *each.shape[2:]) for each in operands))
        return made.reshape(operands[0].shape), True

    return single(image, jnp.asarray(operation), jnp.asarray(amount))


def _with_batch(size: int, batched: list[bool], operands: tuple[Array, ...]) -> tuple[Array, ...]:
    """Repeats those operands that do not have the batch axis, of `size` images."""
    pairs = zip(operands, batched, strict=True)
    return tuple(each if own else jnp.broadcast_to(each, (size, *each.shape)) for each, own in pairs)


def _to_one(
    image: UInt8[Array, "H W 3"], operation: Int[Array, ""], amount: Num[Array, ""], *, fill: geometry.Color
) -> UInt8[Array, "H W 3"]:
    """`apply`, by computing every part."""
    # All three start from the same image, not from one another, again because of fusion.
    warped = warp(image, operation=operation, amount=amount, fill=fill)
    recolored = recolor(image, operation=operation, amount=amount, names=TABLES)
    enhanced = enhance(image, operation=operation, amount=amount, names=ENHANCEMENTS)
    return jnp.where(_is(operation, *GEOMETRIC), warped, jnp.where(_is(operation, *TABLES), recolored, enhanced))


def _to_several(
    images: UInt8[Array, "B H W 3"], operation: Int[Array, "B"], amount: Num[Array, "B"], *, fill: geometry.Color
) -> UInt8[Array, "B H W 3"]:
    """`apply` to a batch, in the form that `sorted_operations` says."""
    every_part = jax.vmap(functools.partial(_to_one, fill=fill))
    own_part = functools.partial(_sorted, fill=fill)
    if sorted_operations.value is not None:
        return (own_part if sorted_operations.value else every_part)(images, operation, amount)
    if jax.process_count() > 1 or not drawn.has_whole_groups(len(images)):
        return every_part(images, operation, amount)
    return by_backend(images, operation, amount, cpu=own_part, default=every_part)


def _sorted(
    images: UInt8[Array, "B H W 3"], operation: Int[Array, "B"], amount: Num[Array, "B"], *, fill: geometry.Color
) -> UInt8[Array, "B H W 3"]:
    """`apply` to a batch, where each image is computed by the part that it drew alone."""
    others = tuple(name for name in TABLES if name not in COUNTED)
    blends = tuple(name for name in ENHANCEMENTS if name != "sharpness")
    parts: list[tuple[tuple[str, ...], Callable[..., Array]]] = [
        (GEOMETRIC, functools.partial(warp, fill=fill)),
        (COUNTED, functools.partial(recolor, names=COUNTED)),
        (others, functools.partial(recolor, names=others)),
        (blends, functools.partial(enhance, names=blends)),
        (("sharpness",), functools.partial(enhance, names=("sharpness",))),
    ]
    for names, part in parts:
        images = drawn.where_drawn(part, _is(operation, *names), images, operation=operation, amount=amount)
    return images


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


def recolor(
    image: UInt8[Array, "H W 3"], *, operation: Scalar, amount: Scalar, names: tuple[str, ...]
) -> UInt8[Array, "H W 3"]:
    """The part of `apply` that maps values to values: one lookup table, the identity for operations not in `names`.

    `operation` -1..14 and `amount` as for `apply`; `names` are of TABLES.
    """

    def table(counts: pixels.Counts) -> pixels.Table:  # of one channel
        table = values = jnp.arange(256, dtype=jnp.uint8)
        candidates = {
            "autocontrast": lambda: pixels.autocontrast_table(counts),
            "equalize": lambda: pixels.equalize_table(counts),
            "invert": lambda: pixels.invert(values),
            "posterize": lambda: pixels.posterize(values, bits=amount),
            "solarize": lambda: pixels.solarize(values, threshold=amount),
            "solarize_add": lambda: pixels.solarize_add(values, amount=amount),
        }
        for name in names:
            table = jnp.where(_is(operation, name), candidates[name](), table)
        return table

    if set(names).isdisjoint(COUNTED):
        tables = jnp.broadcast_to(table(jnp.zeros(256, jnp.int32)), (3, 256))
    else:
        tables = pixels.by_channel(table, pixels.histogram(image))
    return pixels.look_up(image, tables)


def enhance(
    image: UInt8[Array, "H W 3"], *, operation: Scalar, amount: Scalar, names: tuple[str, ...]
) -> UInt8[Array, "H W 3"]:
    """The part of `apply` that blends the image with a degenerate one; the identity for operations not in `names`.

    `operation` -1..14 and `amount` as for `apply`; `names` are of ENHANCEMENTS.
    """
    degenerate: Array = jnp.zeros((), jnp.uint8)
    factor = jnp.where(_is(operation, *names), amount, 1.0)
    candidates = {
        "contrast": lambda: pixels.mean_luma(image),
        "color": lambda: pixels.luma(image)[:, :, None],
        "sharpness": lambda: pixels.smooth(image),
    }
    for name, candidate in candidates.items():
        if name in names:
            degenerate = jnp.where(_is(operation, name), candidate().astype(jnp.uint8), degenerate)
    return pixels.blend(degenerate, image, factor=factor)


def _is(operation: Scalar | Int[Array, "*B"], *names: str) -> Bool[Array, "*B"]:
    """Whether an operation is one of the named ones."""
    return jnp.isin(operation, jnp.array([OPERATIONS.index(name) for name in names]))
