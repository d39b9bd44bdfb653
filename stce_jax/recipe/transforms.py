"""Random changes of one image on the device: mirroring, shifting, three-augment, colour jitter.

Shape letters: H W image height and width.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, PRNGKeyArray, UInt8

from stce_jax.recipe import pixels as operations


def random_flip(key: PRNGKeyArray, image: UInt8[Array, "H W 3"], *, probability: float) -> UInt8[Array, "H W 3"]:
    """Mirrors an image left to right with the given `probability`, 0..1."""
    return jnp.where(jax.random.bernoulli(key, probability), image[:, ::-1], image)


def random_shift(key: PRNGKeyArray, image: UInt8[Array, "H W 3"], *, pixels: int) -> UInt8[Array, "H W 3"]:
    """Moves an image by up to `pixels` >= 0 in both directions; the edge is repeated into the gap."""
    height, width, _ = image.shape
    padded = jnp.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)), mode="edge")
    top, left = jax.random.randint(key, (2,), 0, 2 * pixels + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), (height, width, 3))


def three_augment(key: PRNGKeyArray, image: UInt8[Array, "H W 3"]) -> UInt8[Array, "H W 3"]:
    """One of grayscale, solarize at 128 and blur by 0.1 to 2 pixels, equally likely.

    DeiT III (Touvron et al. 2022) uses it in place of RandAugment.
    """
    choice_key, radius_key = jax.random.split(key)
    choice = jax.random.randint(choice_key, (), 0, 3)
    blurred = operations.gaussian_blur(image, radius=jax.random.uniform(radius_key, minval=0.1, maxval=2.0))
    solarized = operations.solarize(image, threshold=128)
    return jnp.where(choice == 0, operations.grayscale(image), jnp.where(choice == 1, solarized, blurred))


def color_jitter(key: PRNGKeyArray, image: UInt8[Array, "H W 3"], *, strength: float) -> UInt8[Array, "H W 3"]:
    """Changes brightness, contrast and colour in random order.

    Each by a factor of its own, uniform from 1 - strength (but at least 0) to 1 + strength; strength >= 0. As
    torchvision's ColorJitter without hue on Pillow images.
    """
    order_key, factor_key = jax.random.split(key)
    order = jax.random.permutation(order_key, 3)
    factors = jax.random.uniform(factor_key, (3,), minval=max(0.0, 1.0 - strength), maxval=1.0 + strength)

    def change(place: Int32[Array, ""], image: UInt8[Array, "H W 3"]) -> UInt8[Array, "H W 3"]:
        which = order[place]
        gray = jnp.where(which == 1, operations.mean_luma(image).astype(jnp.int32), operations.luma(image)[:, :, None])
        return operations.blend(jnp.where(which == 0, 0, gray), image, factor=factors[which])

    return jax.lax.fori_loop(0, 3, change, image)
