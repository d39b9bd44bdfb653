"""`stce predict`: the likeliest classes of image files."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from etils import epath

from stce_jax.analysis import label_sets, scores
from stce_jax.data import catalog
from stce_jax.data.files import list_images
from stce_jax.errors import CheckpointError, DataError, check_range, check_whole
from stce_jax.models.factory import MOST_CLASSES
from stce_jax.training import assemble as runs
from stce_jax.training import prediction, several_views


def predict(
    paths: epath.PathLike | Iterable[epath.PathLike],
    workdir: epath.PathLike,
    checkpoint: str | int = "last",
    *,
    ema: bool = False,
    topk: int | None = None,
    threshold: float | None = None,
    batch_size: int = 64,
    reduction: str = "",
    tta: str = "",
    unreadable: Callable[[DataError], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Classifies images with a run's model.

    Args:
      paths: image files and folders of them, see `list_images`.
      workdir, checkpoint, ema: see `load_run`.
      topk: how many classes to give of each image at most, >= 1; None: 5, or all where an image may have several.
      threshold: the least probability of a class that is given, 0..1; None: 0, or 0.5 where an image may have several.
      batch_size: images that are computed at a time.
      reduction: another token reduction than the run's, see `load_run`.
      tta: test-time augmentation, see `evaluate`; each record then has "tta", too.
      unreadable: called with the error of each image that cannot be read, which is then left out; by default the first
        is raised.

    Returns:
      An iterator over {"name": path, "classes": [{"id", "name", "probability"}, ...]}, in the order of the paths, the
      likeliest class first. Where an image may have several labels, the probability is each label's by itself, and
      there may be no class. Images are read while it advances.

    Raises:
      StceError: options or paths are wrong, or the run cannot be read; from the iterator: the weights give no numbers.

    Example:
      >>> for image in predict("photos", "runs/pets"):
      ...     print(image["name"], image["classes"][0]["name"])
    """
    if topk is not None:
        check_whole("topk", topk, 1, MOST_CLASSES)
    if threshold is not None:
        check_range("threshold", threshold, 0, 1)
    kinds = several_views.parse(tta)
    files = list_images(paths)
    run = runs.load_run(workdir, checkpoint, ema, reduction=reduction)
    single = run.config.task == catalog.SINGLE_LABEL
    most = topk or (5 if single else len(run.class_ids))
    least = threshold if threshold is not None else 0.0 if single else 0.5
    probabilities = scores.softmax if single else label_sets.probabilities
    batches = prediction.apply(run, run.model, files, batch_size=batch_size, tta=kinds, unreadable=unreadable)
    return _records(run, probabilities, most, least, batches, {"tta": ",".join(kinds)} if kinds else {})


def _records(
    run: runs.Run,
    probabilities_of: Callable[[np.ndarray], np.ndarray],
    most: int,
    least: float,
    batches: Iterable[tuple[list[str], np.ndarray]],
    more: dict[str, str],
) -> Iterator[dict[str, Any]]:
    """A record of each image, with the entries `more`."""
    for names, logits in batches:
        if not np.isfinite(logits).all():
            raise CheckpointError(f"the model of step {run.step} gives no finite numbers; take another --checkpoint")
        for name, probabilities in zip(names, probabilities_of(logits), strict=True):
            ranked = np.argsort(-probabilities, kind="stable")[:most]
            classes = [
                {"id": run.class_ids[place], "name": run.class_names[place], "probability": float(probabilities[place])}
                for place in ranked
                if probabilities[place] >= least
            ]
            yield {"name": name, **more, "classes": classes}
