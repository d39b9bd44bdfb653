"""Images cut into patches.

Shape letters: B batch, H W image height and width, N patches, h w grid of patches, P side of a patch, C channels.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from stce_jax.platform.backends import by_backend

MOST_ROWS = 64  # of a patch that are joined one by one: each takes time to compile


def cut_patches_plain(images: Float[Array, "B H W C"], patch: int) -> Float[Array, "B N pixels"]:
    """The plain form of `cut_patches`."""
    batch, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    patches = images.reshape(batch, rows, patch, columns, patch, channels)  # [B, h, P, w, P, C]
    patches = patches.transpose(0, 1, 3, 2, 4, 5)  # [B, h, w, P, P, C]
    return patches.reshape(batch, rows * columns, patch * patch * channels)  # [B, N, P P C]


def cut_patches(images: Float[Array, "B H W C"], patch: int) -> Float[Array, "B N pixels"]:
    """The values of each patch, in the order row, column, channel; `patch` pixels divide the image's sides.

    For CPUs; saves time: XLA computes a transposition again in each pass that reads it, number by number. There a patch
    is its rows of pixels, joined, which is written once.
    """

    def by_rows(images: Array) -> Array:
        batch, height, width, channels = images.shape
        cut = images.reshape(batch, height // patch, patch, width // patch, patch * channels)  # [B, h, P, w, P C]
        joined = jnp.concatenate([cut[:, :, row] for row in range(patch)], axis=-1)  # [B, h, w, P P C]
        return joined.reshape(batch, height // patch * (width // patch), patch * patch * channels)

    def plain(images: Array) -> Array:
        return cut_patches_plain(images, patch)

    return by_backend(images, cpu=by_rows if patch <= MOST_ROWS else plain, default=plain)
