"""A run's model applied to images, batch by batch.

Shape letters: B batch, b the images of a batch that are real, H W image height and width, S image side.
"""

import collections
import concurrent.futures
import contextlib
import functools
import operator
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, UInt8

from stce_jax.data import loader
from stce_jax.data.crops import center_crop
from stce_jax.data.files import read_image
from stce_jax.data.loader import LARGEST_BATCH
from stce_jax.errors import DataError, check_whole
from stce_jax.models.bodies import Body
from stce_jax.processes import peers as processes
from stce_jax.recipe import augment
from stce_jax.training import assemble as runs
from stce_jax.training import several_views
from stce_jax.training.left import METRICS, left_metrics
from stce_jax.training.mesh import batch_sharding, make_mesh, replicated, round_up
from stce_jax.training.objective import build_objective
from stce_jax.training.preprocessing import view_options

View = UInt8[np.ndarray, "S S 3"] | DataError
Outputs = Any  # Float[np.ndarray, "b ..."], or Tokens of such arrays


def apply(
    run: runs.Run,
    model: Body,
    files: Sequence[str],
    *,
    method: str = "__call__",
    batch_size: int,
    tta: Sequence[str] = (),
    unreadable: Callable[[DataError], None] | None = None,
) -> Iterator[tuple[list[str], Outputs]]:
    """What a model makes of image files, in their order.

    Every batch has the same shape on the devices, so that the model is compiled once; the last is filled up. A few
    batches at a time are in memory.

    Args:
      run: of `load_run`, for weights and preprocessing.
      model: `run.model`, or one that differs in its head.
      files: paths, see `list_images`.
      method: name of the model's method.
      batch_size: images computed at a time, rounded up to what the devices can divide.
      tta: kinds of `several_views.parse`; outputs are then logarithms of mean probabilities.
      unreadable: called with the DataError of each image that cannot be read, which is then left out; None: the first
        is raised.

    Returns:
      An iterator over (paths, outputs), to be closed if it is not used up.

    Raises:
      ConfigError: the batch size is not positive.
    """
    check_whole("batch_size", batch_size, 1, LARGEST_BATCH)
    mesh = make_mesh()
    batch_size = round_up(min(batch_size, len(files)), mesh)
    normalize = functools.partial(augment.normalize, mean=run.mean, std=run.std)
    view = view_options(run.config)
    views = several_views.over(tta, view, build_objective(run.config).of_views)
    step = make_predict_step(model, normalize, mesh, method=method, views=views)
    seen = _views(run.config, files, 2 * batch_size, **several_views.square(tta, view))
    return _outputs(run, step, seen, batch_size, batch_sharding(mesh), unreadable)


def make_predict_step(
    model: Body,
    normalize: Callable[[UInt8[Array, "B H W 3"]], Float[Array, "B H W 3"]],
    mesh: Mesh,
    *,
    method: str = "__call__",
    views: several_views.OverViews | None = None,
) -> Any:
    """Compiles (variables, batch) -> what a model makes of the images, whole in every process.

    Args:
      model: called as model.METHOD(images, train=False).
      normalize: see `augment.normalize`.
      mesh: see `make_mesh`; the batch is split over it.
      method: name of the module's method.
      views: of `several_views.over`, for outputs that are logits; None: of the images themselves.

    Returns:
      A jitted function. Its batch is {"image": uint8 [B, H, W, 3], ...}; it gives back the batch with float32 "outputs"
      [B, ...] in the images' place, and "metrics" {name: float32 [B]} that modules leave, see `left`; every array on
      all devices. See `predictions`.
    """

    def predict_step(variables: Any, batch: dict[str, Array]) -> dict[str, Any]:
        def forward(images: UInt8[Array, "B H W 3"]) -> tuple[Any, dict[str, Array]]:
            outputs, left = model.apply(variables, normalize(images), train=False, method=method, mutable=[METRICS])
            return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), outputs), left_metrics(left)  # of Tokens, too

        images = batch["image"]
        outputs, metrics = forward(images) if views is None else views(forward, images)
        given = {name: rows for name, rows in batch.items() if name != "image"}
        return given | {"outputs": outputs, "metrics": metrics}

    return processes.compile_together(jax.jit(predict_step, out_shardings=replicated(mesh)))


def predictions(step: Any, variables: Any, batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields what a step of `make_predict_step` gives for each batch.

    One step runs at a time, for on CPUs those of several processes would wait for one another's collectives. The next
    batch is fetched and sent meanwhile.
    """
    running = None
    for batch in batches:
        done = jax.block_until_ready(running)
        running = step(variables, batch)
        if done is not None:
            yield jax.device_get(done)
    if running is not None:
        yield jax.device_get(running)


def _outputs(
    run: runs.Run,
    step: Any,
    views: Generator[tuple[str, View], None, None],
    batch_size: int,
    sharding: NamedSharding,
    unreadable: Callable[[DataError], None] | None,
) -> Iterator[tuple[list[str], Outputs]]:
    sent: collections.deque[list[str]] = collections.deque()  # the paths of each batch that is on the devices

    def batches() -> Iterator[dict[str, np.ndarray]]:
        for names, images in _batched(views, batch_size, unreadable):
            sent.append(names)
            yield {"image": images}

    with contextlib.closing(views):
        for batch in predictions(step, run.variables, loader.to_devices(batches(), sharding)):
            names = sent.popleft()
            # Tokens are a tree of arrays.
            yield names, jax.tree.map(operator.itemgetter(slice(len(names))), batch["outputs"])


def _batched(
    views: Iterable[tuple[str, View]], batch_size: int, unreadable: Callable[[DataError], None] | None
) -> Iterator[tuple[list[str], UInt8[np.ndarray, "B S S 3"]]]:
    """The paths and images of views that could be read, `batch_size` at a time; the last is filled up with black."""
    names: list[str] = []
    images: list[np.ndarray] = []
    for path, view in views:
        if isinstance(view, DataError):
            if unreadable is None:
                raise view
            unreadable(view)
            continue
        names.append(path)
        images.append(view)
        if len(images) == batch_size:
            yield names, np.stack(images)
            names, images = [], []
    if images:
        black = np.zeros((batch_size - len(images), *images[0].shape), np.uint8)
        yield names, np.concatenate([np.stack(images), black])


def _views(config: Any, files: Iterable[str], ahead: int, **options: Any) -> Generator[tuple[str, View], None, None]:
    """Each path with its view or error, in order, while threads prepare up to `ahead` more.

    `options` are of the view, see `center_crop`.
    """
    view = functools.partial(_view, **options)
    pool = concurrent.futures.ThreadPoolExecutor(runs.loader_threads(config))
    pending: collections.deque[tuple[str, concurrent.futures.Future[View]]] = collections.deque()
    try:
        for path in files:
            pending.append((path, pool.submit(view, path)))
            if len(pending) > ahead:
                done, future = pending.popleft()
                yield done, future.result()
        for done, future in pending:
            yield done, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _view(path: str, size: int, fraction: float, interpolation: str) -> View:
    try:
        return center_crop(read_image(path), size, fraction, interpolation)
    except DataError as error:
        return error
