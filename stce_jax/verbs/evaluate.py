"""`stce evaluate`: a run's accuracy on its validation images, or others, every image counted exactly once."""

from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool

from stce_jax.analysis import files, groups, label_sets, scores
from stce_jax.data import catalog
from stce_jax.data.holdout import HOLDOUT, hold_out
from stce_jax.errors import ConfigError
from stce_jax.processes import peers as processes
from stce_jax.training import assemble as runs
from stce_jax.training import several_views
from stce_jax.training.evaluation import predict_split
from stce_jax.verbs import library

SPLITS = (*catalog.SPLITS, HOLDOUT)
MEASURES: dict[str, Any] = {catalog.SINGLE_LABEL: scores, catalog.MULTI_LABEL: label_sets}


def evaluate(
    workdir: epath.PathLike,
    checkpoint: str | int = "last",
    *,
    ema: bool = False,
    data_dir: str = "",
    dataset: str = "",
    classes: str = "",
    split: str = "val",
    output: epath.PathLike = "",
    reduction: str = "",
    tta: str = "",
    by: str = "",
) -> dict[str, Any]:
    """Evaluates a run.

    Args:
      workdir, checkpoint, ema: see `load_run`.
      data_dir: where the images are, if not where the run was trained from; needed for another dataset of folders.
      dataset, classes: another dataset with the same classes, see `catalog.open_dataset`; by default the run's own.
      split: "val" or "train"; the other one need not be there. Of a run with `config.holdout`, "holdout" is the part
        that it was evaluated on in training, "train" what it was trained on, and "val" the test images.
      output: a directory for the results and the logits of every image, see `files.write`; "": none.
      reduction: another token reduction than the run's, see `load_run`.
      tta: test-time augmentation, "flip", "crops" or "flip,crops": the mean of the probabilities of an image and its
        mirror image, of five crops, or of ten, see `several_views`. Logits are then the logarithms of these means.
      by: "class", or "FILE.csv:COLUMN", see `groups.read_groups`: give the accuracy of each group, too. Where images
        have several labels there is "class" alone.

    Returns:
      {"step", "epoch", "checkpoint", "ema", "reduction", "tta", "dataset", "split", "holdout", "class_ids",
      "class_names", "images", "loss", "top1", "top5", "balanced_accuracy", "metrics", "calibration_error",
      "reliability", "per_class", "confusion"}, where holdout is the run's config.holdout; loss, top1, top5 and metrics,
      {name: value} of what the model's modules leave for the log, are means over the images, per_class is {class id:
      {"images", "top1"}}, the others are those of `scores.summary`. With `by` there is "by", {"by", "groups": see
      `groups.accuracies`, "images_without_row", "rows_without_image"}, of which the last two are counts, 0 for classes.
      Where images have several labels, the measures are those of `label_sets.summary` instead: "map" is among them,
      and "top1", "confusion" and "by" are not.

    Raises:
      StceError: the run or its data cannot be read, or the output not be written.
    """
    if split not in SPLITS:
        raise ConfigError(f"there is no split {split!r}; the splits are {', '.join(SPLITS)}")
    kinds = several_views.parse(tta)
    if by:
        groups.check_by(by)
    run = runs.load_run(workdir, checkpoint, ema, reduction=reduction)
    by_file = by not in ("", groups.CLASS)
    if by_file:
        catalog.check_single_label(run.config.task, "groups of a CSV file have a top-1", f"give --by={groups.CLASS}")
    images = _open_dataset(run.config, dataset, data_dir, classes, split)
    place = "val" if split == HOLDOUT else split
    runs.report_passed_over(images)
    catalog.check_class_names(images, run.class_ids)
    source, measure = getattr(images, place), MEASURES[run.config.task]
    writes = bool(output) and processes.is_main()
    names = [source.name(index) for index in range(len(source))] if by_file or writes else []
    named = groups.read_groups(by, names) if by_file else None
    if writes:
        files.begin(output)
    parts, left, logits = [], [], []
    with library.for_inference(run, len(source) * several_views.count(kinds)):
        for outputs, labels, left_by_modules in predict_split(run, images, place, tta=kinds):
            parts.append(measure.of_images(outputs, labels))
            left.append(left_by_modules)
            if writes:
                logits.append(outputs)
    by_image = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    metrics = {name: float(np.concatenate([part[name] for part in left]).mean()) for name in left[0]}
    result = {
        "step": run.step,
        "epoch": run.epoch,
        "checkpoint": str(checkpoint),
        "ema": ema,
        "reduction": reduction,
        "tta": ",".join(kinds),
        "dataset": dataset or run.config.dataset,
        "split": split,
        "holdout": run.config.holdout,
        "class_ids": list(run.class_ids),
        "class_names": list(run.class_names),
        "metrics": metrics,
        **measure.summary(by_image, len(run.class_ids)),
    }
    result["per_class"] = dict(zip(run.class_ids, result["per_class"], strict=True))
    if by and "top1" in by_image:
        result["by"] = _by(by, named or groups.Groups(run.class_names, by_image["label"]), by_image["top1"])
    if writes:
        files.write(output, result, names, by_image["label"], np.concatenate(logits))
    return result


def _by(by: str, found: groups.Groups, hits: Bool[np.ndarray, "n"]) -> dict[str, Any]:
    """The entry "by" of a result."""
    return {
        "by": by,
        "groups": groups.accuracies(found, hits),
        "images_without_row": int((found.of_images < 0).sum()),
        "rows_without_image": found.rows_without_image,
    }


def _open_dataset(config: Any, dataset: str, data_dir: str, classes: str, split: str) -> Any:
    """The run's own dataset, or another one, with the split that is needed; what is held out stands as `val`."""
    if split == HOLDOUT and (dataset or not config.holdout):
        reason = f"and not of dataset {dataset!r}" if dataset else "and this one was trained on all of them"
        raise ConfigError(
            f"split 'holdout' is a part of a run's own training images, {reason}; give --split=val or train"
        )
    if dataset in ("", config.dataset):
        raw = 0 if dataset else config.raw_short_side  # a dataset that is named means its images as they were
        places = {"data_dir": data_dir or config.data_dir, "classes": classes or config.classes}
        opened = ("train",) if split == HOLDOUT else (split,)
        found = catalog.open_dataset(
            config.dataset, **places, splits=opened, raw_short_side=raw, task=config.task, of_run=True
        )
        return found if dataset or split == "val" else hold_out(found, config.holdout)
    return catalog.open_dataset(dataset, data_dir, classes, splits=(split,), task=config.task, of_run=True)
