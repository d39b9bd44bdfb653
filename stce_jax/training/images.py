"""Image files put through a run's model, batch by batch: what `stce predict` and `stce features` have in common.

Shape letters: B batch, S image side.
"""

import collections
import concurrent.futures
import contextlib
import functools
import os
import stat
from pathlib import Path

import jax
import numpy as np

from stce_jax.data import loader
from stce_jax.data.decode import center_crop, decode_image
from stce_jax.data.records import is_image, walk_files
from stce_jax.errors import ConfigError, DataError
from stce_jax.paths import first_line
from stce_jax.recipe import augment
from stce_jax.training import assemble as runs
from stce_jax.training.mesh import batch_sharding, make_mesh
from stce_jax.training.step import make_predict_step, predictions


def list_images(paths):
    """The image files that paths mean, in their order.

    Args:
      paths: of files, whatever they are called, and of folders, which mean the image files in them at any depth,
        sorted, without hidden ones; or one such path.

    Returns:
      The files' paths, as text.

    Raises:
      DataError: nothing is called so, or a folder holds no image or cannot be listed.
    """
    found = []
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        path = os.path.expanduser(path)
        if os.path.isdir(path):
            try:
                inside = sorted(file for file in walk_files(path) if is_image(os.path.basename(file)))
            except OSError as error:
                raise DataError(f"cannot list {error.filename}: {error.strerror}; make it readable") from error
            if not inside:
                raise DataError(f"folder {path} holds no image; give another, or files by their names")
            found += inside
        elif os.path.lexists(path):
            found.append(path)
        else:
            raise DataError(f"there is no {path}; give image files, or folders with images")
    return found


def read_image(path):
    """The pixels of an image file, uint8 [H, W, 3], see `decode_image`.

    Raises:
      DataError: it cannot be read.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe, say, from which nothing may ever come
            raise DataError(f"cannot read {path}: it is no regular file")
        return decode_image(Path(path).read_bytes(), path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {first_line(error)}") from error


def apply(run, model, files, *, method="__call__", batch_size, unreadable=None):
    """What a model makes of images, in their order.

    Every batch has the same shape on the devices, so that the model is compiled once; the last is filled up. A few
    batches at a time are in memory.

    Args:
      run: of `load_run`, for weights and preprocessing.
      model: `run.model`, or one that differs in its head.
      files: paths, see `list_images`.
      method: name of the model's method.
      batch_size: images computed at a time, rounded up to what the devices can divide.
      unreadable: function called with the DataError of each image that cannot be read, which is then left out; None:
        the first is raised.

    Returns:
      An iterator over (paths, float32 [b, ...]), b <= batch_size; to be closed if it is not used up.

    Raises:
      ConfigError: the batch size is not positive.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size {batch_size} is no number of images; give 1 or more")
    mesh = make_mesh()
    batch_size = -(-min(batch_size, len(files)) // mesh.size) * mesh.size
    normalize = functools.partial(augment.normalize, mean=run.mean, std=run.std)
    step = make_predict_step(model, normalize, mesh, method=method)
    return _outputs(run, step, files, batch_size, batch_sharding(mesh), unreadable)


def _outputs(run, step, files, batch_size, sharding, unreadable):
    waiting = collections.deque()

    def batches(views):
        for names, images in _batched(views, batch_size, unreadable):
            waiting.append(names)
            yield {"image": images}

    with contextlib.closing(_views(run.config, files, 2 * batch_size)) as views:
        for batch in predictions(step, run.variables, loader.to_devices(batches(views), sharding)):
            names = waiting.popleft()
            kept = len(names)
            yield names, jax.tree.map(lambda rows, kept=kept: rows[:kept], batch["outputs"])


def _batched(views, batch_size, unreadable):
    """Yields (paths, uint8 [batch_size, S, S, 3]) of views that could be had; the last is filled up with black."""
    names, images = [], []
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
        missing = np.zeros((batch_size - len(images), *images[0].shape), np.uint8)
        yield names, np.concatenate([np.stack(images), missing])


def _views(config, files, ahead):
    """Yields (path, uint8 [S, S, 3] or DataError) in order, while threads work on as many as `ahead` more."""
    view = functools.partial(_view, size=config.image_size, fraction=config.augment.eval_crop_fraction)
    pool = concurrent.futures.ThreadPoolExecutor(runs.loader_threads(config))
    waiting = collections.deque()
    try:
        for path in files:
            waiting.append((path, pool.submit(view, path)))
            if len(waiting) > ahead:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _view(path, size, fraction):
    try:
        return center_crop(read_image(path), size, fraction)
    except DataError as error:
        return error
