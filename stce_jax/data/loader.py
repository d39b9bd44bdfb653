"""From a source of encoded images to batches on the devices.

The order of training examples, and every host-side draw, is a pure function of (seed, position in the stream), where
position = step x global batch + row. A loader that starts at any step, with any number of threads or processes,
continues the same stream. A process loads the rows that its devices hold: of P processes, number p the p-th P-th of
every global batch.
"""

import functools
import sys

import grain
import jax
import numpy as np

from stce_jax.data.decode import center_crop, decode_image, random_resized_crop


class _TrainView(grain.transforms.RandomMap):
    """Record -> {"image": uint8 [size, size, 3], "label": int32}, cropped with the position's own generator."""

    def __init__(self, size, crop, area, ratio, fraction):
        self._view = (
            functools.partial(random_resized_crop, size=size, area=area, ratio=ratio)
            if crop == "random_resized"
            else lambda rng, image: center_crop(image, size, fraction)
        )

    def random_map(self, element, rng):
        image = self._view(rng, decode_image(element["image"], element["name"]))
        return {"image": image, "label": np.int32(element["label"])}


def train_batches(source, *, batch_size, size, crop, area, ratio, fraction, seed, start_step, threads):
    """This process's share of every global batch from `start_step` on, without end.

    Args:
      source: records, see `stce_jax.data.catalog`.
      batch_size: images of a global batch; must be divisible by the number of processes.
      size: side of the crops in pixels.
      crop: "random_resized", or "center" for the evaluation view.
      area, ratio: see `random_resized_crop`.  fraction: see `center_crop`.
      seed: of order and crops.
      start_step: global step of the first batch.
      threads: decoding threads of this process.

    Yields:
      {"image": uint8 [B / processes, size, size, 3], "label": int32 [B / processes]}
    """
    stream = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    # Draws come before the choice of rows, so that they belong to the position in the global stream.
    stream = stream.random_map(_TrainView(size, crop, area, ratio, fraction))
    rows = batch_size // jax.process_count()
    first = start_step * batch_size + jax.process_index() * rows

    def own(index):
        step, row = divmod(index, rows)
        return stream[first + step * batch_size + row]

    read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * rows)
    return iter(grain.MapDataset.range(sys.maxsize).map(own).to_iter_dataset(read).batch(rows))


def eval_batches(source, *, batch_size, size, fraction, threads):
    """This process's share of one pass over the source, every image once.

    The last global batch is filled up with black images of weight 0, so that all processes see equally many batches.

    Yields:
      {"image": uint8 [B / processes, size, size, 3], "label": int32 [B / processes], "weight": float32, 1 or 0}
    """
    count = len(source)

    def view(position):
        if position >= count:
            return {"image": np.zeros((size, size, 3), np.uint8), "label": np.int32(0), "weight": np.float32(0)}
        record = source[position]
        image = center_crop(decode_image(record["image"], record["name"]), size, fraction)
        return {"image": image, "label": np.int32(record["label"]), "weight": np.float32(1)}

    padded = -(-count // batch_size) * batch_size
    stream = grain.MapDataset.range(padded)[jax.process_index() :: jax.process_count()].map(view)
    rows = batch_size // jax.process_count()
    read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * rows)
    return iter(stream.to_iter_dataset(read).batch(rows))


def to_devices(batches, sharding):
    """Turns process-local NumPy batches into global device arrays, one batch ahead of the one in use."""
    ahead = None
    for batch in batches:
        current, ahead = ahead, jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
        if current is not None:
            yield current
    if ahead is not None:
        yield ahead
