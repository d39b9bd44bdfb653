"""`stce probe`: a linear classifier on a run's frozen features, for classes that the run need not know."""

import math
from typing import Any

import numpy as np
from etils import epath

from stce_jax.analysis.intervals import wilson_interval
from stce_jax.analysis.linear_probe import fit_probe
from stce_jax.data import catalog, holdout
from stce_jax.errors import CheckpointError, DataError
from stce_jax.training import assemble as runs
from stce_jax.training.evaluation import predict_split
from stce_jax.verbs import library

HELD_OUT = 0.2  # of each class's training images, to choose the penalty


def probe(
    workdir: epath.PathLike,
    checkpoint: str | int = "last",
    *,
    ema: bool = False,
    data_dir: str = "",
    dataset: str = "",
    classes: str = "",
) -> dict[str, Any]:
    """Fits logistic regression on what a run's head reads, and measures it on the test images.

    The run stays as it is. Images are seen as in evaluation, without augmentation. The strength of the penalty is
    chosen on a fifth of each class's training images, then the probe is fitted to all of them.

    Args:
      workdir, checkpoint, ema: see `load_run`; weights of other libraries become a workdir by `stce import`.
      data_dir: where the images are, by default where the run's were.
      dataset, classes: see `catalog.open_dataset`; by default "folder" where a data_dir is given, else the run's own.

    Returns:
      {"step", "features", "strength", "held_out", "images", "top1", "interval", "class_ids", "kernel", "bias"}:
      features are how many numbers an image has, strength is C, held_out {C: top-1 of the images that chose it}, images
      the training and the test images' number, top1 and interval (95%) are of the test images, and
      `features @ kernel + bias` logits in the order of class_ids, for features of `stce features`.

    Raises:
      StceError: the run or its data cannot be read, there are fewer than two classes, or one has a single image.
    """
    run = runs.load_run(workdir, checkpoint, ema)
    found = _open_dataset(run.config, data_dir, dataset, classes)
    runs.report_passed_over(found)
    if len(found.class_ids) < 2:
        raise DataError("there is one class alone; a probe needs two")
    with library.for_inference(run, sum(len(getattr(found, split)) for split in catalog.SPLITS)):
        parts = {split: _features(run, found, split) for split in catalog.SPLITS}
    features, labels = parts["train"]
    held = holdout.held_out(labels, found.class_ids, HELD_OUT)
    fitted = fit_probe(features, labels, held, len(found.class_ids))
    hits = fitted.hits(*parts["val"])
    interval = wilson_interval(int(hits.sum()), len(hits))
    return {
        "step": run.step,
        "features": features.shape[1],
        "strength": fitted.strength,
        "held_out": fitted.held_out,
        "images": (len(labels), len(hits)),
        "top1": float(hits.mean()),
        "interval": (interval.low, interval.high),
        "class_ids": list(found.class_ids),
        "kernel": fitted.kernel,
        "bias": fitted.bias,
    }


def _open_dataset(config: Any, data_dir: str, dataset: str, classes: str) -> Any:
    """The images: those of a data_dir or dataset that is named, else the run's own."""
    if data_dir or dataset:
        return catalog.open_dataset(dataset or "folder", data_dir, classes)
    catalog.check_single_label(
        config.task, "a probe is fitted to the run's own images", "give --data_dir=DIR of others"
    )
    raw = config.raw_short_side
    return catalog.open_dataset(config.dataset, config.data_dir, classes or config.classes, raw_short_side=raw)


def _features(run: runs.Run, dataset: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    """(features [n, D], labels [n]) of a split."""
    outputs, labels = [], []
    for features, own, _ in predict_split(run, dataset, split, method="features"):
        outputs.append(features)
        labels.append(own)
    found = np.concatenate(outputs)
    if not math.isfinite(float(np.abs(found).sum(dtype=np.float64))):
        raise CheckpointError(f"the model of step {run.step} gives no finite numbers; take another --checkpoint")
    return found, np.concatenate(labels)
