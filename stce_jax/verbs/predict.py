"""`stce predict`: the likeliest classes of image files."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from etils import epath

from stce_jax.analysis import scores
from stce_jax.data.files import list_images
from stce_jax.errors import CheckpointError, DataError, check_whole
from stce_jax.models.factory import MOST_CLASSES
from stce_jax.training import assemble as runs
from stce_jax.training import prediction, several_views


def predict(
    paths: epath.PathLike | Iterable[epath.PathLike],
    workdir: epath.PathLike,
    checkpoint: str | int = "last",
    *,
    ema: bool = False,
    topk: int = 5,
    batch_size: int = 64,
    reduction: str = "",
    tta: str = "",
    unreadable: Callable[[DataError], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Classifies images with a run's model.

    Args:
      paths: image files and folders of them, see `list_images`.
      workdir, checkpoint, ema: see `load_run`.
      topk: how many classes to give of each image, >= 1; never more than there are.
      batch_size: images that are computed at a time.
      reduction: another token reduction than the run's, see `load_run`.
      tta: test-time augmentation, see `evaluate`; each record then has "tta", too.
      unreadable: called with the error of each image that cannot be read, which is then left out; by default the first
        is raised.

    Returns:
      An iterator over {"name": path, "classes": [{"id", "name", "probability"}, ...]}, in the order of the paths, the
      likeliest class first. Images are read while it advances.

    Raises:
      StceError: options or paths are wrong, or the run cannot be read; from the iterator: the weights give no numbers.

    Example:
      >>> for image in predict("photos", "runs/pets"):
      ...     print(image["name"], image["classes"][0]["name"])
    """
    check_whole("topk", topk, 1, MOST_CLASSES)
    kinds = several_views.parse(tta)
    files = list_images(paths)
    run = runs.load_run(workdir, checkpoint, ema, reduction=reduction)
    batches = prediction.apply(run, run.model, files, batch_size=batch_size, tta=kinds, unreadable=unreadable)
    return _records(run, topk, batches, {"tta": ",".join(kinds)} if kinds else {})


def _records(
    run: runs.Run, topk: int, batches: Iterable[tuple[list[str], np.ndarray]], more: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """A record of each image, with the entries `more`."""
    for names, logits in batches:
        if not np.isfinite(logits).all():
            raise CheckpointError(f"the model of step {run.step} gives no finite numbers; take another --checkpoint")
        for name, probabilities in zip(names, scores.softmax(logits), strict=True):
            ranked = np.argsort(-probabilities, kind="stable")[:topk]
            classes = [
                {"id": run.class_ids[place], "name": run.class_names[place], "probability": float(probabilities[place])}
                for place in ranked
            ]
            yield {"name": name, **more, "classes": classes}
