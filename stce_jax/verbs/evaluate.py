"""`stce evaluate`: a run's accuracy on its validation images, or others, every image counted exactly once."""

import functools

import jax
import numpy as np

from stce_jax.analysis import files, scores
from stce_jax.data import catalog, loader
from stce_jax.errors import ConfigError
from stce_jax.processes import peers as processes
from stce_jax.recipe import augment
from stce_jax.training import assemble as runs
from stce_jax.training.mesh import batch_sharding, make_mesh, replicated
from stce_jax.training.step import make_eval_step, make_predict_step, predictions

IN_FLIGHT = 3  # evaluation steps that are on the devices at a time


def evaluate(workdir, checkpoint="last", *, ema=False, data_dir="", dataset="", classes="", split="val", output=""):
    """Evaluates a run.

    Args:
      workdir, checkpoint, ema: see `load_run`.
      data_dir: where the images are, if not where the run was trained from; needed for another dataset of folders.
      dataset, classes: another dataset with the same classes, see `catalog.open_dataset`; by default the run's own.
      split: "val" or "train"; a folder with the other one missing will do.
      output: a directory for the results and the logits of every image, see `files.write`; "": none.

    Returns:
      {"step", "epoch", "checkpoint", "ema", "dataset", "split", "class_ids", "class_names", "images", "loss", "top1",
      "top5", "calibration_error", "reliability", "per_class", "confusion"}: loss, top1 and top5 are means over the
      images, per_class is {class id: {"images", "top1"}}, the others are those of `scores.summary`.

    Raises:
      StceError: the run or its data cannot be read, or the output not be written.
    """
    if split not in catalog.SPLITS:
        raise ConfigError(f"there is no split {split!r}; the splits are {', '.join(catalog.SPLITS)}")
    run = runs.load_run(workdir, checkpoint, ema)
    images = _open_dataset(run.config, dataset, data_dir, classes, split)
    catalog.check_class_names(images, run.class_ids)
    writes = bool(output) and processes.is_main()
    if writes:
        files.begin(output)
    parts, logits = [], []
    for outputs, labels in predict_split(run, images, split):
        parts.append(scores.of_images(outputs, labels))
        if writes:
            logits.append(outputs)
    by_image = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    result = {
        "step": run.step,
        "epoch": run.epoch,
        "checkpoint": str(checkpoint),
        "ema": ema,
        "dataset": dataset or run.config.dataset,
        "split": split,
        "class_ids": list(run.class_ids),
        "class_names": list(run.class_names),
        **scores.summary(by_image, len(run.class_ids)),
    }
    result["per_class"] = dict(zip(run.class_ids, result["per_class"], strict=True))
    if writes:
        source = getattr(images, split)
        names = [source.name(index) for index in range(len(source))]
        files.write(output, result, names, by_image["label"], np.concatenate(logits))
    return result


def predict_split(run, dataset, split="val"):
    """Yields (logits float32 [b, classes], labels int32 [b]) of the images of a split, batch by batch in their order.

    Works in several processes, each of which gets all of it.
    """
    mesh = make_mesh()  # there may be fewer devices than in training
    normalize = functools.partial(augment.normalize, mean=run.mean, std=run.std)
    step = make_predict_step(run.model, normalize, mesh)
    count = jax.process_count()
    with _eval_batches(runs.eval_views(run.config, dataset, split), run.config, mesh) as batches:
        for batch in predictions(step, run.variables, loader.to_devices(batches, batch_sharding(mesh))):
            # Row r of process p is the image at r * P + p: [P * B/P, ...] -> [P, B/P, ...] -> [B/P, P, ...] -> [B, ...]
            batch = {
                name: rows.reshape(count, -1, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)
                for name, rows in batch.items()
            }
            real = batch["weight"] > 0
            yield batch["outputs"][real], batch["label"][real]


def eval_step(model, dataset, *, deterministic=False):
    """The jitted evaluation step of a model on a dataset's pixels."""
    normalize = functools.partial(augment.normalize, mean=dataset.mean, std=dataset.std)
    return make_eval_step(model, normalize, deterministic=deterministic)


def mean_metrics(variables, step, views, config, mesh, *, asked=bool):
    """{"loss", "top1", "top5"}: means over all validation images; None if a process was asked to stop.

    Args:
      variables: parameters and BatchNorm statistics.
      step: of `eval_step`.
      views: of the images, see `runs.eval_views`.
      config: for the batch size and the loading.
      mesh: see `make_mesh`; the batch is rounded up to what its devices can divide.
      asked: function that says before each batch whether this process is asked to stop.
    """
    with _eval_batches(views, config, mesh) as batches:
        sums, latest = [], next(loader.to_devices([np.float32(0)], replicated(mesh)))
        for batch in loader.to_devices(loader.with_asked(batches, asked), batch_sharding(mesh)):
            sums.append(step(variables, batch, latest))
            latest = sums[-1]["asked"]
            if len(sums) < IN_FLIGHT:
                continue
            if jax.device_get(sums[-IN_FLIGHT]["asked"]) > 0:  # waits: more would only fill the memory
                jax.block_until_ready(latest)  # what comes next may ask the devices in another order
                return None
    totals = {name: sum(float(part[name]) for part in jax.device_get(sums)) for name in sums[0]}
    if totals["asked"]:
        return None
    return {name: totals[name] / totals["count"] for name in ("loss", "top1", "top5")}


def _eval_batches(views, config, mesh):
    batch_size = -(-config.eval_batch_size // mesh.size) * mesh.size
    return loader.eval_batches(
        views, batch_size=batch_size, threads=runs.loader_threads(config), timeout=config.loader_timeout
    )


def _open_dataset(config, dataset, data_dir, classes, split):
    """The run's own dataset, or another one, with the split that is needed."""
    if dataset in ("", config.dataset):
        raw = 0 if dataset else config.raw_short_side  # a dataset that is named means its images as they were
        return catalog.open_dataset(
            config.dataset, data_dir or config.data_dir, classes or config.classes, splits=(split,), raw_short_side=raw
        )
    return catalog.open_dataset(dataset, data_dir, classes, splits=(split,))
