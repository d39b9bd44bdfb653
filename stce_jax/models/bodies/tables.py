"""Tables of relative positions brought to another window or image size, as fine-tuning needs them.

Source: the published codes of Swin, Focal Transformer and DAT, which interpolate bicubically in the offsets.
"""

import math
from typing import Any

import numpy as np

from stce_jax.models.ops.positions import resize_bicubic

SURROUNDING = "/surrounding_bias"
POOLED, POOL = "/pooled_bias_table", "/pool/kernel"
Arrays = dict[str, Any]  # {path, such as "params/blocks_0/attention/bias_table": array}


def fit_tables(found: Arrays, expected: Arrays) -> tuple[Arrays, str]:
    """Resamples tables of biases that have another size than expected; bicubic, see `ops.positions.resize_bicubic`.

    Known are the "bias_table" of `WindowAttention` [offsets, A] and of `DeformableAttention` [A, rows, columns], and of
    `FocalAttention` also "pooled_bias_table" [A, offsets] and "pool/kernel" [N, 1], whose sum stays about the same. Its
    "surrounding_bias" starts at zero where there was none, or one of another shape.

    Args:
      found: {path: np.ndarray}.
      expected: {path: anything with a shape} of the model that the weights are for.

    Returns:
      (arrays, a few words for people on what was done, or ""). What does not fit for other reasons stays.
    """
    fitted, windows, notes = dict(found), set(), set()
    interpolated = "tables of relative positions interpolated"
    for path, wanted in expected.items():
        old, shape = found.get(path), tuple(wanted.shape)
        if path.endswith(SURROUNDING) and path.replace(SURROUNDING, "/bias_table") in found:
            if old is None or old.shape != shape:
                fitted[path] = np.zeros(shape, np.float32)
                notes.add("biases of surroundings start at zero")
            continue
        if not path.endswith(("/bias_table", POOLED, POOL)) or old is None or old.shape == shape:
            continue
        if (resized := _resized(path, old, shape)) is not None:
            fitted[path] = resized
            notes.add(interpolated)
            if old.ndim == 2 and path.endswith("/bias_table"):
                windows.add(f"{_window(len(old))} to {_window(shape[0])}")
    if windows:
        notes = notes - {interpolated} | {f"{interpolated} from windows of {', '.join(sorted(windows))}"}
    return fitted, ", ".join(sorted(notes, reverse=True))


def _window(offsets: int) -> str:
    """The windows that a table has (2 w - 1)^2 offsets of."""
    side = (math.isqrt(offsets) + 1) // 2
    return f"{side}x{side}"


def _resized(path: str, old: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """A table in another shape; None if it is not of a square, or of other heads."""
    if old.ndim != len(shape):
        return None
    heads_first = old.ndim == 3 or path.endswith(POOLED)
    heads = 0 if heads_first else -1
    if old.shape[heads] != shape[heads]:
        return None
    table = np.moveaxis(old, 0, -1) if heads_first else old  # [offsets or rows, columns, A]
    sizes = [shape[1:] if heads_first else shape[:-1], table.shape[:-1]]
    if old.ndim == 2:
        sides = [math.isqrt(offsets) for (offsets,) in sizes]
        if any(side**2 != offsets for side, (offsets,) in zip(sides, sizes, strict=True)):
            return None
        if path.endswith("/bias_table") and not all(side % 2 for side in sides):
            return None
        sizes = [(side, side) for side in sides]
    (rows, columns), before = sizes
    resized = resize_bicubic(table.reshape(*before, -1), (rows, columns))
    if path.endswith(POOL):
        resized = resized * np.asarray(math.prod(before) / (rows * columns), resized.dtype)
    return (np.moveaxis(resized, -1, 0) if heads_first else resized).reshape(shape)
