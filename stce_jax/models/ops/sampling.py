"""Values of a map between its places.

Shape letters: B batch, S samples, H W height and width of a map, C channels, G groups of A tables.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stce_jax.models.ops.precision import of_rank, wide_product, widened


def bilinear_weights(positions: Float[Array, "*axes"], side: int) -> Float[Array, "*axes side"]:
    """What each of `side` places in a row counts in a value between two of them.

    Args:
      positions: -1 is the first place and 1 the last (PyTorch's align_corners=True). Beyond them lie zeros, so that the
        weights of a position farther out than a place are all zero. The gradient is that of the piece to the right.
      side: number of places.

    Returns:
      at most two numbers that are not zero in each row; float32 or wider.
    """
    places = (widened(positions) + 1.0) * (0.5 * (side - 1))
    low = jax.lax.stop_gradient(jnp.floor(places))
    share = (places - low)[..., None]
    behind = jnp.expand_dims(np.arange(side, dtype=low.dtype), tuple(range(low.ndim))) - low[..., None]
    return jnp.where(behind == 0.0, 1.0 - share, jnp.where(behind == 1.0, share, 0.0))


def sample_bilinear(values: Float[Array, "B H W C"], positions: Float[Array, "B S 2"]) -> Float[Array, "B S C"]:
    """Bilinear samples of a map, in its dtype, zeros beyond it; by a product, as there are few samples.

    A product with S x H W weights takes more multiplications than gathering four values a sample, but its gradient
    scatters nothing.

    Args:
      values: the map.
      positions: (y, x) of each sample, see `bilinear_weights`.
    """
    batch, height, width, channels = values.shape
    rows = bilinear_weights(positions[..., 0], height)  # [B, S, H]
    columns = bilinear_weights(positions[..., 1], width)  # [B, S, W]
    weights = (rows[:, :, :, None] * columns[:, :, None, :]).reshape(*rows.shape[:2], height * width)
    flat = values.reshape(batch, height * width, channels)
    return wide_product("bsp,bpc->bsc", weights.astype(values.dtype), flat).astype(values.dtype)


def sample_differences(
    tables: Float[Array, "G A rows columns"],
    from_rows: Float[np.ndarray, "H"],
    from_columns: Float[np.ndarray, "W"],
    positions: Float[Array, "B G S 2"],
) -> Float[Array, "B G A H W S"]:
    """Bilinear samples of tables at half the difference of each place of a grid and each position of the table's group.

    As the grid's rows and columns are those of its places, one axis is sampled after the other, each by a product.

    Args:
      tables: zeros lie beyond them.
      from_rows, from_columns: y of the grid's rows and x of its columns.
      positions: (y, x); of a difference divided by two, -1 is a table's first row or column and 1 its last.
    """
    wide = widened(positions).transpose(1, 0, 2, 3)  # groups first, so that no product needs another order of axes
    down, right = (
        0.5 * (of_rank(4, jnp.asarray(places, wide.dtype)) - wide[..., axis, None])  # [G, B, S, H or W]
        for axis, places in enumerate((from_rows, from_columns))
    )
    rows = bilinear_weights(down, tables.shape[2])  # [G, B, S, H, rows]
    columns = bilinear_weights(right, tables.shape[3])  # [G, B, S, W, columns]
    lines = jnp.einsum("gbshi,gaij->gbshaj", rows, tables.astype(rows.dtype))
    return jnp.einsum("gbshaj,gbswj->gbshaw", lines, columns).transpose(1, 0, 4, 3, 5, 2)
