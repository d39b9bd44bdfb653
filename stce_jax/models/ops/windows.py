"""Windows of a map, for attention within them: cut, put together, and what their places say.

Shape letters: B batch, H W feature height and width, C channels, a b rows and columns of a window, n windows of a map,
N = a b places of a window, A attention heads.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Pair = tuple[int, int]
HIDDEN = -100.0  # what Swin's authors add to a logit that is not to count


def to_windows(features: Float[Array, "B H W C"], window: Pair) -> Float[Array, "B n N C"]:
    """Cuts a map whose sides the window's divide; windows row by row, the places of each as well."""
    batch, height, width, channels = features.shape
    rows, columns = height // window[0], width // window[1]
    cut = features.reshape(batch, rows, window[0], columns, window[1], channels)  # [B, h, a, w, b, C]
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, window[0] * window[1], channels)


def from_windows(windows: Float[Array, "B n N C"], size: Pair, window: Pair) -> Float[Array, "B H W C"]:
    """The map of `size` that `to_windows` has cut."""
    batch, channels = windows.shape[0], windows.shape[-1]
    rows, columns = size[0] // window[0], size[1] // window[1]
    cut = windows.reshape(batch, rows, columns, *window, channels)  # [B, h, w, a, b, C]
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, *size, channels)


def overlapping_windows(
    features: Float[Any, "B H W C"], side: int, margin: int, xp: Any = jnp
) -> Float[Any, "B n P C"]:
    """Cuts a map into square windows that overlap: each has the P = (side + 2 margin)^2 places of a window of
    `to_windows` and of the margin around it, row by row.

    Args:
      features: the map with its margin, `margin` places on each side.
      side: of the windows without their margin; divides the sides of the map without its own.
      margin: 0 or more.
      xp: the library of the arrays, jax.numpy or NumPy.
    """
    reach, cut = side + 2 * margin, features
    for axis in (1, 3):
        cut = _overlapping(cut, axis, side, reach, xp)  # [B, h, P, W, C], then [B, h, P, w, P, C]
    batch, rows, _, columns, _, channels = cut.shape
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, reach**2, channels)


def _overlapping(values: Any, axis: int, side: int, reach: int, xp: Any) -> Any:
    """Pieces of an axis, `reach` long, that begin `side` apart: the axis becomes two, [pieces, reach].

    Put together of the parts that `side` divides it into: slices at each start would have a sum of as many gradients.
    """
    length = values.shape[axis]
    count = (length - reach) // side + 1
    filled = xp.pad(values, [(0, -length % side if place == axis else 0) for place in range(values.ndim)])
    parts = filled.reshape(*values.shape[:axis], filled.shape[axis] // side, side, *values.shape[axis + 1 :])
    pieces = []
    for first in range(-(-reach // side)):
        long = min(side, reach - first * side)
        pieces.append(parts[(slice(None),) * axis + (slice(first, first + count), slice(long))])
    return xp.concatenate(pieces, axis=axis + 1)


def relative_bias(table: Float[Array, "offsets A"], of: Pair, window: Pair) -> Float[Array, "A N N"]:
    """The bias of each query's place and key's place, from a table of their offsets (Swin, Liu et al. 2021).

    By slices and reshapes alone: a gather's gradient would be a scatter, slow or in no fixed order on accelerators.

    Args:
      table: row (dy + a - 1) (2 b - 1) + dx + b - 1 is for a query that lies (dy, dx) behind its key, (a, b) = `of`.
      of: rows and columns of the window that the table is made for.
      window: rows and columns of the actual one, at most as many.
    """
    (rows, columns), heads = window, table.shape[1]
    offsets = table.reshape(2 * of[0] - 1, 2 * of[1] - 1, heads)
    seen = offsets[of[0] - rows : of[0] + rows - 1, of[1] - columns : of[1] + columns - 1]  # [2 a - 1, 2 b - 1, A]
    by_row = _by_places(seen).transpose(2, 0, 1, 3)  # [2 b - 1, a of keys, a of queries, A]
    both = _by_places(by_row)  # [b of keys, b of queries, a of keys, a of queries, A]
    return both.transpose(4, 3, 1, 2, 0).reshape(heads, rows * columns, rows * columns)


def _by_places(offsets: Float[Array, "differences *rest"]) -> Float[Array, "keys queries *rest"]:
    """Entry query - key + n - 1 of 2 n - 1 entries for each pair of n places: each row begins one entry further left.

    Rows of 2 n entries, the last of which is a filler, one after the other, are read as rows of 2 n - 1.
    """
    count, rest = (offsets.shape[0] + 1) // 2, offsets.shape[1:]
    filled = jnp.pad(offsets, ((0, 1), *[(0, 0)] * len(rest)))  # [2 n, ...]
    line = jnp.broadcast_to(filled[None], (count, *filled.shape)).reshape(-1, *rest)[: count * (2 * count - 1)]
    return line.reshape(count, 2 * count - 1, *rest)[:, count - 1 :]


def shift_mask(size: Pair, window: Pair, shift: Pair) -> Float[np.ndarray, "n N N"]:
    """What is added to the logits of windows of a map that was rolled by -`shift`: 0, or -100 for places that did not
    lie side by side before.

    Source: Swin's published code, which adds -100 and not minus infinity.

    Args:
      size: of the map; the window's sides divide its own.
      window: rows and columns of a window.
      shift: 0 <= shift < window.
    """
    labels = []
    for side, wide, moved in zip(size, window, shift, strict=True):
        places = np.arange(side)
        labels.append((places >= side - wide).astype(int) + (places >= side - moved) if moved else 0 * places)
    label = 3 * labels[0][:, None] + labels[1][None, :]  # [H, W]
    rows, columns = size[0] // window[0], size[1] // window[1]
    cut = label.reshape(rows, window[0], columns, window[1]).transpose(0, 2, 1, 3)  # in NumPy: a constant under jit
    cut = cut.reshape(rows * columns, -1)  # [n, N]
    return np.where(cut[:, :, None] == cut[:, None, :], 0.0, HIDDEN).astype(np.float32)
