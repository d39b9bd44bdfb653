"""A vision transformer's weights in another form: blocks stacked or one by one, other patches, grids and tokens."""

import math
import re
from typing import Any

import jax.numpy as jnp
import numpy as np

from stce_jax.errors import CheckpointError
from stce_jax.models.ops.patch_kernels import resize_patch_kernel
from stce_jax.models.ops.positions import resize_position_embedding

LEADING_TOKENS = ("params/class_token", "params/distillation_token")
POSITIONS = "params/position_embedding"
PATCHES, PATCH_NORM = "params/embedding/projection/kernel", "params/embedding/patch_norm/scale"
STACKED_BLOCKS = "params/blocks/"  # of a model with scan_layers; the others have params/blocks_0/ and so on
Arrays = dict[str, Any]


def fit_weights(
    found: Arrays, expected: Arrays, old_grid: tuple[int, int] | None, new_grid: tuple[int, int]
) -> tuple[Arrays, str]:
    """Stacks or unstacks the blocks, resamples patch kernel and positions, and leaves out what distillation added.

    A distilled model's weights give a plain one its class token and that token's head. The other way there is no rule.

    Args:
      found: {path: np.ndarray}, such as "params/norm/scale".
      expected: {path: anything with a shape} of the model that the weights are for.
      old_grid: (h, w) of the position embedding found; None: it must be a square.
      new_grid: (h, w) of the model.

    Returns:
      (arrays, a few words for people on what was interpolated, or "").

    Raises:
      CheckpointError: the position embedding is of no square grid; or the model has a distillation token and the
        weights have none.
    """
    found, notes = _stack_as(expected, found), []
    for fit in (_fit_distillation, _fit_patches):
        found, note = fit(found, expected)
        notes.append(note)
    found, note = _fit_positions(found, expected, old_grid, new_grid)
    return found, ", ".join(filter(None, [*notes, note]))


def _fit_distillation(found: Arrays, expected: Arrays) -> tuple[Arrays, str]:
    """Takes the distillation token, its place and its head out of a distilled model's weights for a plain model."""
    token = LEADING_TOKENS[1]
    if token in expected and token not in found and LEADING_TOKENS[0] in found:
        raise CheckpointError("the model has a distillation token, the weights have none; give distilled=False")
    if token in expected or token not in found or LEADING_TOKENS[0] not in expected:
        return found, ""
    rest = {path: array for path, array in found.items() if path != token and "/distillation_head/" not in path}
    if POSITIONS in rest and rest[POSITIONS].ndim == 3:
        rest[POSITIONS] = np.delete(rest[POSITIONS], 1, axis=1)
    return rest, "without the distillation token and its head"


def _fit_patches(found: Arrays, expected: Arrays) -> tuple[Arrays, str]:
    """Resamples the kernel of a plain patch embedding; behind a LayerNorm over patches there is no such rule."""
    if PATCHES not in found or PATCHES not in expected or PATCH_NORM in expected or PATCH_NORM in found:
        return found, ""
    kernel, shape = found[PATCHES], expected[PATCHES].shape
    if kernel.ndim != 2 or len(shape) != 2 or kernel.shape[1] != shape[1]:
        return found, ""
    old, new = (math.isqrt(count // 3) for count in (kernel.shape[0], shape[0]))
    if old == new or (3 * old * old, 3 * new * new) != (kernel.shape[0], shape[0]):
        return found, ""
    resized = resize_patch_kernel(kernel.reshape(old, old, 3, -1), new).reshape(shape)
    return found | {PATCHES: resized}, f"patch kernel resampled from {old}x{old} to {new}x{new}"


def _stack_as(expected: Arrays, found: Arrays) -> Arrays:
    """Brings the blocks' parameters into the form of `expected`, stacked along axis 0 or one by one, if they can be."""
    wants_stacked = any(path.startswith(STACKED_BLOCKS) for path in expected)
    fitted: Arrays = {}
    groups: dict[str, dict[int, np.ndarray]] = {}
    for path, array in found.items():
        block = re.fullmatch(r"params/blocks_(\d+)/(.*)", path)
        if wants_stacked and block:
            groups.setdefault(STACKED_BLOCKS + block[2], {})[int(block[1])] = array
        elif not wants_stacked and path.startswith(STACKED_BLOCKS) and array.ndim:
            name = path.removeprefix(STACKED_BLOCKS)
            fitted |= {f"params/blocks_{index}/{name}": part for index, part in enumerate(array)}
        else:
            fitted[path] = array
    for path, blocks in groups.items():
        if sorted(blocks) != list(range(len(blocks))) or len({array.shape for array in blocks.values()}) > 1:
            return found
        fitted[path] = np.stack([blocks[index] for index in range(len(blocks))])
    return fitted


def _fit_positions(
    found: Arrays, expected: Arrays, old_grid: tuple[int, int] | None, new_grid: tuple[int, int]
) -> tuple[Arrays, str]:
    if POSITIONS not in found or POSITIONS not in expected:
        return found, ""
    old, leading = found[POSITIONS], sum(token in found for token in LEADING_TOKENS)
    same_width = old.ndim == 3 and (old.shape[0], old.shape[2]) == (1, expected[POSITIONS].shape[2])
    if not same_width or leading != sum(token in expected for token in LEADING_TOKENS):
        return found, ""
    count = old.shape[1] - leading
    if old_grid is None and count != math.prod(new_grid):
        old_grid = (math.isqrt(max(0, count)),) * 2
        if count < 1 or math.prod(old_grid) != count:
            raise CheckpointError(
                f"{POSITIONS} {old.shape} is of {count} tokens, "
                f"no square grid that could be interpolated to {new_grid[0]}x{new_grid[1]}"
            )
    if old_grid is None or old_grid == new_grid:
        return found, ""
    # On the host's device in float32: every process gets the same array.
    rest = resize_position_embedding(jnp.asarray(old[:, leading:], jnp.float32), old_grid, new_grid)
    resized = np.concatenate([old[:, :leading], np.asarray(rest)], axis=1)
    sizes = " to ".join(f"{rows}x{columns}" for rows, columns in (old_grid, new_grid))
    return found | {POSITIONS: resized}, f"position embedding interpolated from {sizes}"
