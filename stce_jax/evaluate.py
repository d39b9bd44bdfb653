"""`stce evaluate`: a run's accuracy on its validation images, every image counted exactly once."""

import functools

import jax

from stce_jax.data import augment, catalog, loader
from stce_jax.engine.mesh import batch_sharding, make_mesh
from stce_jax.engine.step import make_eval_step
from stce_jax.runs import load_run


def evaluate(workdir, checkpoint="last", *, ema=False, data_dir=""):
    """Evaluates a run.

    Args:
      workdir, checkpoint, ema: see `load_run`.
      data_dir: where the dataset is, if not where the run was trained from.

    Returns:
      {"step", "epoch", "images", "loss", "top1", "top5"}; the last three are means over the images.

    Raises:
      StceError: the run or its data cannot be read.
    """
    run = load_run(workdir, checkpoint, ema)
    dataset = catalog.open_dataset(run.config.dataset, data_dir or run.config.data_dir)
    catalog.check_class_names(dataset, run.class_names)
    mesh = make_mesh(run.config.fsdp_devices)
    metrics = mean_metrics(run.variables, eval_step(run.model, dataset), dataset, run.config, mesh)
    return {"step": run.step, "epoch": run.epoch, "images": len(dataset.val), **metrics}


def eval_step(model, dataset):
    """The jitted evaluation step of a model on a dataset's pixels."""
    return make_eval_step(model, functools.partial(augment.normalize, mean=dataset.mean, std=dataset.std))


def mean_metrics(variables, step, dataset, config, mesh):
    """{"loss", "top1", "top5"}: means over all validation images.

    Args:
      variables: parameters and BatchNorm statistics.
      step: of `eval_step`.
      dataset: its `val` is evaluated.
      config: for batch and image size.
      mesh: see `make_mesh`; the batch is rounded up to what its devices can divide.
    """
    batch_size = -(-config.eval_batch_size // mesh.size) * mesh.size
    batches = loader.eval_batches(
        dataset.val,
        batch_size=batch_size,
        size=config.image_size,
        fraction=config.augment.eval_crop_fraction,
        threads=config.loader_threads,
    )
    sums = [step(variables, batch) for batch in loader.to_devices(batches, batch_sharding(mesh))]
    totals = {name: sum(float(part[name]) for part in jax.device_get(sums)) for name in sums[0]}
    return {name: totals[name] / totals["count"] for name in ("loss", "top1", "top5")}
