"""`stce evaluate`: a run's accuracy on its validation images, every image counted exactly once."""

import functools

import jax
import numpy as np

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
    mesh = make_mesh()  # there may be fewer devices than in training
    views = runs.eval_views(run.config, dataset)
    metrics = mean_metrics(run.variables, eval_step(run.model, dataset), views, run.config, mesh)
    return {"step": run.step, "epoch": run.epoch, "images": len(dataset.val), **metrics}


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
    batch_size = -(-config.eval_batch_size // mesh.size) * mesh.size
    with loader.eval_batches(
        views, batch_size=batch_size, threads=runs.loader_threads(config), timeout=config.loader_timeout
    ) as batches:
        sums, latest = [], np.float32(0)
        for batch in loader.to_devices(loader.with_asked(batches, asked), batch_sharding(mesh)):
            sums.append(step(variables, batch, latest))
            latest = sums[-1]["asked"]
            if len(sums) >= IN_FLIGHT and sums[-IN_FLIGHT]["asked"] > 0:  # waits: more would only fill the memory
                jax.block_until_ready(latest)  # what comes next may ask the devices in another order
                return None
    totals = {name: sum(float(part[name]) for part in jax.device_get(sums)) for name in sums[0]}
    if totals["asked"]:
        return None
    return {name: totals[name] / totals["count"] for name in ("loss", "top1", "top5")}
