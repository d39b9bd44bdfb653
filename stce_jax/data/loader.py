"""From views of images to batches on the devices.

The order of training examples, and every host-side draw, is a pure function of (seed, salt, position in the stream),
and a global batch takes the next positions, in an order that the caller may choose. A loader that starts at any
position, with any batch size, any number of threads, workers or processes, continues the same stream. A process loads
the rows that its devices hold: of P processes, number p the p-th P-th of every global batch.

Shape letters: B images of a global batch.
"""

import functools
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grain
import jax
import numpy as np
from absl import flags
from jaxtyping import Int

from stce_jax.data.feeder import Feeder, prepare_worker
from stce_jax.data.order import Order
from stce_jax.data.views import Stream, Views
from stce_jax.errors import ConfigError, check_range, check_whole
from stce_jax.paths import first_line

LARGEST_BATCH = 2**20  # images
MOST_THREADS = 1024
LONGEST_WAIT = 1e9  # seconds, thirty years: what says "never"; the system's clocks take ten times as much


def train_batches(
    views: Views,
    order: Order,
    *,
    batch_size: int,
    seed: int,
    position: int,
    threads: int,
    workers: int,
    timeout: float,
    stop: Callable[[], bool] | None = None,
    size_of: Callable[[int], int] | None = None,
    places: Int[np.ndarray, "B"] | None = None,
) -> Feeder:
    """This process's share of every global batch from a position of the stream on, without end.

    Args:
      views: of the training images.
      order: which image stands at each position of the stream, see `make_order`; picklable if there are workers.
      batch_size: images of a global batch; must be divisible by the number of processes.
      seed: of the crops.
      position: of the first global batch's first row.
      threads: that decode in this process; 0: the feeder's own.
      workers: processes that decode instead, each in one thread; 0: none.
      timeout, stop: see `Feeder`.
      size_of: see `Stream`; picklable if there are workers.
      places: which image of a global batch each row holds, counted in the stream's order; None: each its own.

    Returns:
      An iterator over {"image": uint8 [B / processes, size, size, 3], "label": int32 [B / processes]}, or int32 [B /
      processes, classes] of images with several labels, see `records.Record`; to be closed.
    """
    rows = batch_size // jax.process_count()
    places = np.arange(batch_size) if places is None else places
    own: dict[str, Any] = {"position": position, "places": places[jax.process_index() * rows :][:rows]}
    stream = Stream(views, order, seed=seed, **own, batch_size=batch_size, size_of=size_of)
    examples = grain.MapDataset.range(sys.maxsize).map(stream.example)
    if workers:
        _check_semaphores()
        # Whole batches: a worker takes every n-th element.
        batches = examples.batch(rows).to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain passes them to its workers
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        # Through pipes: named shared memory would outlive a killed run.
        through_pipes = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
        batches = grain.experimental.WithOptionsIterDataset(batches, through_pipes)
        batches = batches.mp_prefetch(options, worker_init_fn=functools.partial(prepare_worker, timeout))
    else:
        batches = examples.to_iter_dataset(_read_options(threads, rows)).batch(rows)
    return Feeder(batches, timeout=timeout, stop=stop)


def _check_semaphores() -> None:
    """Raises ConfigError where processes cannot share anything: containers may lack a /dev/shm to write to."""
    try:
        multiprocessing.get_context("spawn").Semaphore()
    except (OSError, ImportError) as error:
        raise ConfigError(
            f"loader processes need semaphores in /dev/shm, which fails: {first_line(error)}; make it writable, or "
            "load in threads with --config.loader_workers=0"
        ) from error


def eval_batches(views: Views, *, batch_size: int, threads: int, timeout: float) -> Feeder:
    """This process's share of one pass over the views, every image once.

    The last global batch is filled with black images of weight 0, so that all processes see the same number of batches.

    Returns:
      An iterator over {"image": uint8 [B / processes, size, size, 3], "label": int32 [B / processes], "weight": float32
      [B / processes], 1 or 0}; to be closed.
    """
    count = len(views)
    black, no_label = np.zeros((views.size, views.size, 3), np.uint8), np.zeros(views.label_shape, np.int32)

    def example(position: int) -> dict[str, Any]:
        if position < count:
            image, label = views.view(position)
            return {"image": image, "label": label, "weight": np.float32(1)}
        return {"image": black, "label": no_label, "weight": np.float32(0)}

    padded = -(-count // batch_size) * batch_size
    examples = grain.MapDataset.range(padded)[jax.process_index() :: jax.process_count()].map(example)
    rows = batch_size // jax.process_count()
    return Feeder(examples.to_iter_dataset(_read_options(threads, rows)).batch(rows), timeout=timeout)


def _read_options(threads: int, rows: int) -> Any:
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2 * rows, threads))


def to_devices(batches: Iterable[Any], sharding: jax.sharding.Sharding) -> Iterator[Any]:
    """Turns process-local batches, trees of NumPy arrays, into global device arrays.

    A batch is sent when it is requested. Steps are dispatched without waiting for them, so that happens while the
    previous step is computed.
    """
    for batch in batches:
        with jax.transfer_guard("allow"):  # with several processes, JAX takes this for an implicit transfer
            sent = jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
        yield sent


def check_options(
    *, batch_size: int, eval_batch_size: int, threads: int | None, workers: int, timeout: float, cache_megabytes: int
) -> None:
    """Raises ConfigError if a config's options of loading cannot work."""
    check_whole("config.batch_size", batch_size, 1, LARGEST_BATCH)
    check_whole("config.eval_batch_size", eval_batch_size, 1, LARGEST_BATCH)
    if threads is not None:
        check_whole("config.loader_threads", threads, 1, MOST_THREADS)
    check_whole("config.loader_workers", workers, 0, 256)  # each takes some 300 MB
    check_range("config.loader_timeout", timeout, 1, LONGEST_WAIT)
    check_whole("config.cache_megabytes", cache_megabytes, 0, 2**22)
