"""Windows of a map in PyTorch, as Swin's successors use them: cutting, joining, biases, attention within them.

Shape letters: B batch, H W feature height and width, C channels, n windows of a map, N places of a window, M keys of a
window, A attention heads, E width of a head.
"""

import torch
from torch.nn import functional as F

HIDDEN = -100.0  # added to the logits of keys that a query must not see, as in the published codes


def to_windows(features, side):
    """[B, H, W, C] -> [B, n, N, C], windows and places row by row."""
    batch, height, width, channels = features.shape
    cut = features.reshape(batch, height // side, side, width // side, side, channels)
    return cut.permute(0, 1, 3, 2, 4, 5).reshape(batch, -1, side * side, channels)


def from_windows(windows, size, side):
    """[B, n, N, C] -> [B, H, W, C], with `size` (H, W)."""
    batch, channels = windows.shape[0], windows.shape[-1]
    cut = windows.reshape(batch, size[0] // side, size[1] // side, side, side, channels)
    return cut.permute(0, 1, 3, 2, 4, 5).reshape(batch, *size, channels)


def offsets_index(queries, keys):
    """[queries^2, keys^2] index into a table of the offsets between the places of two squares, row by row.

    The table's sides are queries + keys - 1; the smallest offset, of the first query and the last key, comes first.
    """
    line = torch.arange(queries)[:, None] - torch.arange(keys)[None] + keys - 1  # [queries, keys]
    both = line[:, None, :, None] * (queries + keys - 1) + line[None, :, None, :]
    return both.reshape(queries * queries, keys * keys)


def shift_mask(size, side, shift):
    """[n, N, N] what hides, in windows of a map rolled by `shift`, places that came from the opposite border."""
    labels = torch.zeros(1, *size, 1)
    cuts = (slice(0, -side), slice(-side, -shift), slice(-shift, None))
    for label, (rows, columns) in enumerate((rows, columns) for rows in cuts for columns in cuts):
        labels[:, rows, columns] = label
    labels = to_windows(labels, side)[0, :, :, 0]
    return (labels[:, :, None] != labels[:, None, :]) * HIDDEN


def attend(query, key, value, bias):
    """Attention within windows by PyTorch's fused kernel.

    Args:
      query: [B, n, A, N, E].
      key, value: [B, n, A, M, E].
      bias: [n, A, N, M], or [1, A, N, M] where all windows have the same.

    Returns:
      [B, n, A, N, E].
    """
    if len(bias) == 1:
        folded = (part.flatten(0, 1) for part in (query, key, value))
        return F.scaled_dot_product_attention(*folded, attn_mask=bias).reshape(query.shape)
    # Each window's heads stand for heads of their own, so that the bias need not be repeated for each image.
    folded = (part.flatten(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(*folded, attn_mask=bias.flatten(0, 1)[None]).reshape(query.shape)
