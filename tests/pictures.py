"""Sources of pictures that tell what happened to them, and loaders of them. Loader processes import this, too."""

import contextlib
import functools
import io
import itertools
import time
from unittest import mock

import jax
import numpy as np
from PIL import Image

from stce_jax.data import loader
from stce_jax.data.order import make_order
from stce_jax.data.views import SAMPLES, Views

COUNT = 10  # images of the usual source; no batch size of the tests divides it but 2


class Source:
    """PNGs whose pixels tell their place: red is the column, green the row, blue the image, whose label it is."""

    def __init__(self, count=COUNT, side=24):
        rows, columns = np.mgrid[:side, :side].astype(np.uint8)
        self.images = [np.stack([columns * 10, rows * 10, 0 * rows + index], axis=2) for index in range(count)]

    def __len__(self):
        return len(self.images)

    def name(self, index):
        return f"picture {index}"

    @functools.cache  # noqa: B019
    def __getitem__(self, index):
        stream = io.BytesIO()
        Image.fromarray(self.images[index]).save(stream, format="PNG")
        return {"image": stream.getvalue(), "label": index, "name": self.name(index)}


class DamagedSource(Source):
    def __getitem__(self, index):
        record = super().__getitem__(index)
        return record | {"image": record["image"][:60]} if index == 7 else record


class SlowSource(Source):
    """Takes its time, `seconds`, over one picture."""

    seconds = 100.0

    def __getitem__(self, index):
        if index == 7:
            time.sleep(self.seconds)
        return super().__getitem__(index)


class CountingSource(Source):
    """Counts how often it is read."""

    def __init__(self, count=COUNT, side=24):
        super().__init__(count, side)
        self.reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)


class UnevenSource(Source):
    """Small pictures at those places that are looked at to guess the size of all, large ones elsewhere."""

    def __init__(self, count=101):
        super().__init__(count)
        small, large = Source(count, side=4), Source(count, side=24)
        looked_at = np.linspace(0, count - 1, SAMPLES).astype(int)
        self.images = [(small if index in looked_at else large).images[index] for index in range(count)]


SOURCE = Source()
VIEWS = {"size": 6, "crop": "random_resized", "area": (0.2, 0.8), "ratio": (0.75, 4 / 3), "fraction": 1.0}
OPTIONS = {
    "batch_size": 4,
    "seed": 3,
    "position": 0,
    "threads": 2,
    "workers": 0,
    "timeout": 60.0,
}


def feeder(source=SOURCE, **options):
    """The training batches of a source; options of the views and of the loader in one."""
    views = Views(source, **(VIEWS | {name: options.pop(name) for name in [*VIEWS, "cache_bytes"] if name in options}))
    options = OPTIONS | options
    drawn = {"salt": options.pop("salt", 0), "repeats": options.pop("repeats", 1), "seed": options["seed"]}
    order = make_order(options.pop("sampling", ""), options.pop("labels", None), count=len(source), **drawn)
    return loader.train_batches(views, order, **options)


def train(steps, source=SOURCE, **options):
    """The first batches as {"image": [steps, rows, ...], "label": [steps, rows]}."""
    with feeder(source, **options) as batches:
        batches = list(itertools.islice(batches, steps))
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def assert_equal(found, expected, message):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=f"{message}: {name}")


@functools.cache
def undisturbed():
    return train(45)


@contextlib.contextmanager
def as_process(index, count):
    """As if this process were number `index` of `count`."""
    with mock.patch.object(jax, "process_index", lambda: index), mock.patch.object(jax, "process_count", lambda: count):
        yield
