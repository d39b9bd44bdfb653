"""Tables of relative positions brought to another window or image size, as fine-tuning needs them."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# A path's end -> how its array [*shape] becomes a square image [side, side, channels], and back.
TABLE = re.compile(r"/(bias_table|pooled_bias_table|pool/kernel)$")
SURROUNDING = "/surrounding_bias"

Arrays = dict[str, Any]  # {path, such as "params/blocks_0/attention/bias_table": array}


def fit_tables(found: Arrays, expected: Arrays) -> tuple[Arrays, str]:
    """Interpolates tables of biases that have another size than expected; bicubic.

    Known are [offsets, A] and [A, offsets] of a square of offsets, [A, rows, columns], and the weights of a window's
    places ("pool/kernel", [N, 1]), whose sum stays the same. Learned biases of surroundings (`FocalAttention`) start at
    zero if their shape differs.

    Args:
      found: {path: np.ndarray}.
      expected: {path: anything with a shape} of the model that the weights are for.

    Returns:
      (arrays, a few words for people on what was interpolated, or "").
    """
    fitted, notes = dict(found), set()
    for path, wanted in expected.items():
        if path.endswith(SURROUNDING) and (path not in found or found[path].shape != wanted.shape):
            if path.removesuffix(SURROUNDING) + "/bias_table" in found:  # it is the attention of such a body
                fitted[path] = np.zeros(wanted.shape, np.float32)
                notes.add("biases of surroundings start at zero")
        elif TABLE.search(path) and path in found and found[path].shape != wanted.shape:
            resized = _resized(path, found[path], tuple(wanted.shape))
            if resized is not None:
                fitted[path] = resized
                notes.add("tables of positions interpolated")
    return fitted, "; ".join(sorted(notes, reverse=True))


def _resized(path: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """The table in another shape; None if it is no such table, or of other heads."""
    if array.ndim != len(shape):
        return None
    if array.ndim == 3:  # [A, rows, columns]
        image, sides = array, shape[1:]
        if array.shape[0] != shape[0]:
            return None
    else:
        # Offsets lie along the last axis of a pooled table, along the first of others.
        last = path.endswith("pooled_bias_table")
        image, count = (array, shape[1]) if last else (array.T, shape[0])
        if (array.shape[0] != shape[0]) if last else (array.shape[1] != shape[1]):
            return None
        old, new = math.isqrt(image.shape[1]), math.isqrt(count)
        if old**2 != image.shape[1] or new**2 != count:
            return None
        image, sides = image.reshape(-1, old, old), (new, new)
    # On the host's device in float32: every process gets the same array.
    resized = jax.image.resize(jnp.asarray(image, jnp.float32), (image.shape[0], *sides), method="bicubic")
    if path.endswith("pool/kernel"):
        resized = resized * (image.shape[1] ** 2 / sides[0] ** 2)
    resized = np.asarray(resized)
    if array.ndim == 3:
        return resized
    flat = resized.reshape(resized.shape[0], -1)
    return flat if path.endswith("pooled_bias_table") else flat.T
