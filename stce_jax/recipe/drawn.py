"""Has each image of a batch pay only for what it drew: images are sorted by it and computed a few at a time.

Under vmap a branch becomes a selection among results that were all computed. Here the images that drew a function are
put first, and a loop takes them by the chunk until none is left. Images are sorted within groups, so that a batch that
several devices share stays where it is: they agree on one number, how often the loop runs.

Shape letters: B batch, G groups of N images each, H W image height and width.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, Shaped, UInt8

CHUNK = 4  # images that a device computes in a pass: more idle in the last pass, fewer keep fewer cores busy
GROUP = 32  # images that are sorted among themselves where several devices may share a batch
State = tuple[Int32[Array, ""], UInt8[Array, "G N H W 3"]]  # images of each group that are done, images


def has_whole_groups(batch: int) -> bool:
    """Whether each device has whole groups of a batch that all of them share."""
    return batch > 0 and (jax.device_count() == 1 or batch % (GROUP * jax.device_count()) == 0)


def where_drawn(
    function: Callable[..., UInt8[Array, "H W 3"]],
    drawn: Bool[Array, "B"],
    images: UInt8[Array, "B H W 3"],
    **options: Shaped[Array, "B ..."],
) -> UInt8[Array, "B H W 3"]:
    """Applies `function` to the images that drew it; the others cost nothing and stay as they are.

    On one device the whole batch is one group. On several it is one, too, if it is no multiple of GROUP: the result is
    the same, but devices send each other images.

    Args:
      function: (image [H, W, 3], **options of this image) -> image of the same shape; it is vmapped.
      drawn: which images it is applied to.
      options: [B] each.
    """
    batch, devices = len(images), jax.device_count()
    if not batch:
        return images
    size = batch if devices == 1 or batch % GROUP else GROUP
    chunk = min(size, max(1, CHUNK * devices * size // batch))  # images of a group in a pass
    counts = drawn.reshape(-1, size).sum(axis=1, keepdims=True, dtype=jnp.int32)  # [G, 1]
    most = counts.max()
    order = jnp.argsort(~drawn.reshape(-1, size), axis=1, stable=True).astype(jnp.int32)  # those that drew it first
    order = jnp.where(jnp.arange(size, dtype=jnp.int32)[None] < counts, order, size)  # place `size` is no image's
    order = jnp.pad(order, ((0, 0), (0, -size % chunk)), constant_values=size)
    grouped = {name: each.reshape(-1, size) for name, each in options.items()}

    def advance(state: State) -> State:
        done, images = state
        places = jax.lax.dynamic_slice_in_dim(order, done, chunk, axis=1)  # [G, chunk]
        taken, own = jax.tree.map(lambda each: _take(each, places), (images, grouped))
        made = jax.vmap(jax.vmap(lambda image, own: function(image, **own)))(taken, own)
        return done + chunk, _put(images, places, made)

    state = jnp.int32(0), images.reshape(-1, size, *images.shape[1:])
    return jax.lax.while_loop(lambda state: state[0] < most, advance, state)[1].reshape(images.shape)


@jax.vmap
def _take(rows: Array, places: Int32[Array, "chunk"]) -> Array:
    """The rows of a group at `places`; any row for a place outside."""
    return rows.at[places].get(mode="clip")


@jax.vmap
def _put(rows: Array, places: Int32[Array, "chunk"], new: Array) -> Array:
    """The rows of a group with those at `places` replaced; what is for a place outside is dropped."""
    return rows.at[places].set(new, mode="drop")
