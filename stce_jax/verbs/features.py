"""`stce features`: what a run's model makes of image files before it names classes."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from etils import epath

from stce_jax.data.files import list_images
from stce_jax.errors import ConfigError, DataError
from stce_jax.training import assemble as runs
from stce_jax.training import prediction
from stce_jax.verbs import library

METHODS = {"pooled": "features", "tokens": "tokens"}  # of a body, by the kind of features


def features(
    paths: epath.PathLike | Iterable[epath.PathLike],
    workdir: epath.PathLike,
    checkpoint: str | int = "last",
    *,
    ema: bool = False,
    kind: str = "pooled",
    batch_size: int = 64,
    unreadable: Callable[[DataError], None] | None = None,
) -> dict[str, np.ndarray]:
    """Computes features of images with a run's model.

    Args:
      paths: image files and folders of them, see `list_images`.
      workdir, checkpoint, ema: see `load_run`.
      kind: "pooled": what the head reads, so that features @ kernel + bias are the logits; "tokens": the last block's
        tokens after the LayerNorm, the class token apart.
      batch_size: images that are computed at a time.
      unreadable: called with the error of each image that cannot be read, which is then left out; by default the first
        is raised.

    Returns:
      {"names": str [n], the files' paths, "features": float32 [n, D]}; of tokens "features": float32 [n, N, D], and
      where there is such a thing "grid": int32 [2], the rows and columns in which they lie, row by row,
      "class_token": float32 [n, D], or "leading_tokens": float32 [n, L, D] if there are others (a distillation token,
      registers), "sizes": float32 [n, N], how many original tokens each stands for, and "mask": bool [n, N], False for
      those that are not real.

    Raises:
      StceError: options or paths are wrong, the run cannot be read, or none of the images can.

    Example:
      >>> pooled = features("photos", "runs/pets")["features"]
    """
    if kind not in METHODS:
        raise ConfigError(f"there is no kind of features {kind!r}; the kinds are {', '.join(METHODS)}")
    files = list_images(paths)
    run = runs.load_run(workdir, checkpoint, ema)
    batches = prediction.apply(
        run, run.model, files, method=METHODS[kind], batch_size=batch_size, unreadable=unreadable
    )
    names: list[str] = []
    found: Any = None  # an array, or Tokens of arrays
    with library.for_inference(run, len(files)):
        for paths_done, outputs in batches:
            if found is None:  # once, for it may fill the memory
                found = jax.tree.map(lambda rows: np.empty((len(files), *rows.shape[1:]), np.float32), outputs)
            for whole, rows in zip(jax.tree.leaves(found), jax.tree.leaves(outputs), strict=True):
                whole[len(names) : len(names) + len(rows)] = rows
            names += paths_done
    if found is None:
        raise DataError(f"none of the {len(files)} images can be read")
    found = jax.tree.map(lambda rows: rows[: len(names)], found)
    arrays = {"features": found} if kind == "pooled" else _of_tokens(found)
    return {"names": np.array(names, str), **arrays}


def _of_tokens(tokens: Any) -> dict[str, np.ndarray]:
    """The arrays of `Tokens`."""
    leading = tokens.leading
    arrays = {"features": tokens.values[:, leading:]}
    if tokens.grid is not None:
        arrays["grid"] = np.array(tokens.grid, np.int32)
    if leading == 1 and not tokens.registers:
        arrays["class_token"] = tokens.values[:, 0]
    elif leading:
        arrays["leading_tokens"] = tokens.values[:, :leading]
    if tokens.sizes is not None:
        arrays["sizes"] = tokens.sizes[:, leading:]
    if tokens.mask is not None:
        arrays["mask"] = tokens.mask[:, leading:] > 0
    return arrays
