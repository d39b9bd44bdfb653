"""`stce evaluate`: a run's accuracy on its validation images, every image counted exactly once."""

import functools

import jax

from stce_jax import runs
from stce_jax.data import augment, catalog, loader
from stce_jax.engine.mesh import batch_sharding, make_mesh
from stce_jax.engine.step import make_eval_step

IN_FLIGHT = 3  # evaluation steps that are on the devices at a time


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
    run = runs.load_run(workdir, checkpoint, ema)
    dataset = runs.open_dataset(run.config, data_dir)
    catalog.check_class_names(dataset, run.class_ids)
    mesh = make_mesh(run.config.fsdp_devices)
    views = runs.eval_views(run.config, dataset)
    metrics = mean_metrics(run.variables, eval_step(run.model, dataset), views, run.config, mesh)
    return {"step": run.step, "epoch": run.epoch, "images": len(dataset.val), **metrics}


def eval_step(model, dataset):
    """The jitted evaluation step of a model on a dataset's pixels."""
    return make_eval_step(model, functools.partial(augment.normalize, mean=dataset.mean, std=dataset.std))


def mean_metrics(variables, step, views, config, mesh):
    """{"loss", "top1", "top5"}: means over all validation images.

    Args:
      variables: parameters and BatchNorm statistics.
      step: of `eval_step`.
      views: of the images, see `runs.eval_views`.
      config: for the batch size and the loading.
      mesh: see `make_mesh`; the batch is rounded up to what its devices can divide.
    """
    batch_size = -(-config.eval_batch_size // mesh.size) * mesh.size
    with loader.eval_batches(
        views, batch_size=batch_size, threads=runs.loader_threads(config), timeout=config.loader_timeout
    ) as batches:
        sums = []
        for batch in loader.to_devices(batches, batch_sharding(mesh)):
            sums.append(step(variables, batch))
            jax.block_until_ready(sums[-IN_FLIGHT:][0])  # more would only hold more batches in memory
    totals = {name: sum(float(part[name]) for part in jax.device_get(sums)) for name in sums[0]}
    return {name: totals[name] / totals["count"] for name in ("loss", "top1", "top5")}
