"""`stce features`: what a run's model makes of image files before it names classes."""

import numpy as np

from stce_jax.data.files import list_images
from stce_jax.errors import ConfigError, DataError
from stce_jax.training import assemble as runs
from stce_jax.training import prediction

KINDS = ("pooled", "tokens")


def features(paths, workdir, checkpoint="last", *, ema=False, kind="pooled", batch_size=64, unreadable=None):
    """Computes features of images with a run's model.

    Args:
      paths: image files and folders of them, see `list_images`.
      workdir, checkpoint, ema: see `load_run`.
      kind: "pooled": what the head reads, so that features @ kernel + bias are the logits; "tokens": the last block's
        tokens after the LayerNorm, the class token apart.
      batch_size: images that are computed at a time.
      unreadable: function called with the DataError of each image that cannot be read, which is then left out; by
        default the first is raised.

    Returns:
      {"names": str [n], the files' paths, "features": float32 [n, D]}; of tokens "features": float32 [n, N, D], row by
      row of the grid, "grid": int32 [2], its rows and columns, and "class_token": float32 [n, D] if the model has one.

    Raises:
      StceError: options or paths are wrong, the run cannot be read, or none of the images can.

    Example:
      >>> pooled = features("photos", "runs/pets")["features"]
    """
    if kind not in KINDS:
        raise ConfigError(f"there is no kind of features {kind!r}; the kinds are {', '.join(KINDS)}")
    files = list_images(paths)
    run = runs.load_run(workdir, checkpoint, ema)
    model, method = (run.model.clone(num_classes=0), "__call__") if kind == "pooled" else (run.model, "tokens")
    batches = prediction.apply(run, model, files, method=method, batch_size=batch_size, unreadable=unreadable)
    names, found = [], None
    for paths_done, rows in batches:
        if found is None:
            found = np.empty((len(files), *rows.shape[1:]), np.float32)  # once, for it may fill the memory
        found[len(names) : len(names) + len(rows)] = rows
        names += paths_done
    if found is None:
        raise DataError(f"none of the {len(files)} images can be read")
    found = found[: len(names)]
    result = {"names": np.array(names, str), "features": found}
    if kind == "tokens":
        result["grid"] = np.array(run.model.embedding.grid(*run.model.image_size), np.int32)
        if run.model.pooling == "class":
            result |= {"class_token": found[:, 0], "features": found[:, 1:]}
    return result
