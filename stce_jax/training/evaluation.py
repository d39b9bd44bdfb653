"""A model over a whole split: metrics while a run trains, or every image's logits.

Shape letters: B global batch, b the images of a batch that are real, P processes, K classes.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from stce_jax.data import loader
from stce_jax.data.feeder import Feeder
from stce_jax.data.views import Views
from stce_jax.models.bodies import Body
from stce_jax.processes.stop_flag import FLAG, flagged
from stce_jax.recipe import augment
from stce_jax.training import assemble as runs
from stce_jax.training import several_views
from stce_jax.training.mesh import batch_sharding, make_mesh, replicated, round_up
from stce_jax.training.prediction import make_predict_step, predictions
from stce_jax.training.preprocessing import view_options
from stce_jax.training.step import make_eval_step

IN_FLIGHT = 3  # evaluation steps that are on the devices at a time


def eval_step(model: Body, dataset: Any, mesh: Mesh, *, deterministic: bool = False) -> Any:
    """The jitted evaluation step of a model on a dataset's pixels, its variables on a mesh."""
    normalize = functools.partial(augment.normalize, mean=dataset.mean, std=dataset.std)
    return make_eval_step(model, normalize, mesh, deterministic=deterministic)


def mean_metrics(
    variables: Any,
    step: Any,
    views: Views,
    config: Any,
    mesh: Mesh,
    *,
    stop_requested: Callable[[], Any] = bool,
) -> dict[str, float] | None:
    """Means over all validation images: "loss", "top1", "top5", and what modules leave for the log, see `left`.

    None if a process was asked to stop.

    Args:
      variables: parameters and BatchNorm statistics.
      step: of `eval_step`.
      views: of the images, see `runs.eval_views`.
      config: for the batch size and the loading.
      mesh: see `make_mesh`; the batch is rounded up to what its devices can divide.
      stop_requested: called before each batch; whether this process was asked to stop.
    """
    with _eval_batches(views, config, mesh) as batches:
        sums: list[dict[str, Any]] = []
        flag = next(loader.to_devices([{FLAG: np.zeros((), np.float32)}], replicated(mesh)))[FLAG]
        for batch in loader.to_devices(flagged(batches, stop_requested), batch_sharding(mesh)):
            sums.append(step(variables, batch, after=flag))
            flag = sums[-1][FLAG]
            if len(sums) < IN_FLIGHT:
                continue
            if jax.device_get(sums[-IN_FLIGHT][FLAG]) > 0:  # waits: more would only fill the memory
                jax.block_until_ready(flag)  # what comes next may use the devices in another order
                return None
    totals = {name: sum(float(part[name]) for part in jax.device_get(sums)) for name in sums[0]}
    if totals[FLAG]:
        return None
    own = ("loss", "top1", "top5")
    names = (*own, *(name for name in totals if name not in (*own, "count", FLAG)))
    return {name: totals[name] / totals["count"] for name in names}


def predict_split(
    run: runs.Run, dataset: Any, split: str = "val", *, method: str = "__call__", tta: Sequence[str] = ()
) -> Iterator[tuple[Float[np.ndarray, "b K"], Int[np.ndarray, "b"], dict[str, Float[np.ndarray, "b"]]]]:
    """Yields (logits, labels, metrics that modules leave, see `left`) of a split's images, batch by batch in order.

    Works in several processes, each of which yields all of it. With `tta`, kinds of `several_views.parse`, logits are
    logarithms of mean probabilities, and metrics means over the views.
    """
    mesh = make_mesh()  # there may be fewer devices than in training
    normalize = functools.partial(augment.normalize, mean=run.mean, std=run.std)
    view = view_options(run.config)
    step = make_predict_step(run.model, normalize, mesh, method=method, views=several_views.cuts(tta, view))
    views = runs.eval_views(run.config, dataset, split, several_views.square(tta, view))
    count = jax.process_count()
    with _eval_batches(views, run.config, mesh) as batches:
        for batch in predictions(step, run.variables, loader.to_devices(batches, batch_sharding(mesh))):
            # Row r of process p is the image at r * P + p: [P * B/P, ...] -> [P, B/P, ...] -> [B/P, P, ...] -> [B, ...]
            batch = jax.tree.map(
                lambda rows: rows.reshape(count, -1, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape), batch
            )
            real = batch["weight"] > 0
            metrics = {name: rows[real] for name, rows in batch["metrics"].items()}
            yield batch["outputs"][real], batch["label"][real], metrics


def _eval_batches(views: Views, config: Any, mesh: Mesh) -> Feeder:
    batch_size = round_up(config.eval_batch_size, mesh)
    return loader.eval_batches(
        views, batch_size=batch_size, threads=runs.loader_threads(config), timeout=config.loader_timeout
    )
