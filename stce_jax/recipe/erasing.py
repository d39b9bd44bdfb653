"""Random erasing (Zhong et al. 2020) on the device, as timm's "pixel" mode.

Shape letters: H W image height and width.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from stce_jax.recipe.ranks import of_any_rank


@of_any_rank
def random_erasing(
    key: PRNGKeyArray,
    image: Float[Array, "H W 3"],
    *,
    probability: float,
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> Float[Array, "H W 3"]:
    """With the given probability, fills one box of a normalised image with noise from N(0, 1), value by value.

    Args:
      key: of this image.
      image: normalised, so that the noise looks like it.
      probability: 0..1.
      area: minimum and maximum of the box's share of the image's area, 0..1.
      ratio: minimum and maximum of the box's height over its width, above 0.
    """
    height, width, _ = image.shape
    apply_key, box_key, noise_key = jax.random.split(key, 3)
    top, left, box_height, box_width = erasing_box(box_key, height, width, area=area, ratio=ratio)
    rows, columns = jnp.arange(height)[:, None] - top, jnp.arange(width) - left
    inside = (rows >= 0) & (rows < box_height) & (columns >= 0) & (columns < box_width)  # [H, W]
    inside &= jax.random.bernoulli(apply_key, probability)
    # Noise for the largest possible box, its sides rounded up, not for the whole image: drawing it is what costs.
    largest = area[1] * height * width
    sides = max(math.sqrt(each) + 1 / math.sqrt(each) for each in ratio) * math.sqrt(largest)
    count = min(math.ceil(largest + sides / 2 + 1), height * width)
    # In a loop of two halves: outside of loops, compilers fuse, and would draw it again for each use of the image.
    noise = jax.lax.map(lambda key: jax.random.normal(key, (-(-count // 2), 3)), jax.random.split(noise_key))
    entries = jnp.where(inside, rows * box_width + columns, 0)
    return jnp.where(inside[:, :, None], noise.reshape(-1, 3)[entries].astype(image.dtype), image)


def erasing_box(
    key: PRNGKeyArray, height: int, width: int, *, area: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Int32[Array, ""], Int32[Array, ""], Int32[Array, ""], Int32[Array, ""]]:
    """Top, left, height and width of the box in an image of that height and width.

    The first of ten draws that is smaller than the image in both directions; an empty box if none is. Each draws its
    share of the image uniformly from `area` (0..1) and the log of height over width uniformly from `ratio` (above 0).
    """
    area_key, ratio_key, top_key, left_key = jax.random.split(key, 4)
    areas = height * width * jax.random.uniform(area_key, (10,), minval=area[0], maxval=area[1])
    low, high = (math.log(each) for each in ratio)
    ratios = jnp.exp(jax.random.uniform(ratio_key, (10,), minval=low, maxval=high))
    heights, widths = (jnp.round(jnp.sqrt(each)).astype(jnp.int32) for each in (areas * ratios, areas / ratios))
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits)
    box_height, box_width = (jnp.where(fits[first], sides[first], 0) for sides in (heights, widths))
    top = jax.random.randint(top_key, (), 0, height - box_height + 1)
    left = jax.random.randint(left_key, (), 0, width - box_width + 1)
    return top, left, box_height, box_width
