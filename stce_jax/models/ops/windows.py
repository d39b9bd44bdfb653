"""Windows of a map, for attention within them: cut, put together, and what their places say.

Shape letters: B batch, H W feature height and width, C channels, a b rows and columns of a window, n windows of a map,
N = a b places of a window, A attention heads.
"""

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


def relative_bias(table: Float[Array, "offsets A"], of: Pair, window: Pair) -> Float[Array, "A N N"]:
    """The bias of each query's place and key's place, from a table of their offsets (Swin, Liu et al. 2021).

    Args:
      table: row (dy + a - 1) (2 b - 1) + dx + b - 1 is for a query that lies (dy, dx) behind its key, (a, b) = `of`.
      of: rows and columns of the window that the table is made for.
      window: rows and columns of the actual one, at most as many.
    """
    row, column = (axis.reshape(-1) for axis in np.meshgrid(*map(np.arange, window), indexing="ij"))  # each [N]
    down, right = (place[:, None] - place[None, :] for place in (row, column))  # [N, N]
    index = (down + of[0] - 1) * (2 * of[1] - 1) + right + of[1] - 1
    return table[index.reshape(-1)].reshape(*index.shape, -1).transpose(2, 0, 1)


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
