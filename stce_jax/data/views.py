"""What the model is shown of a source's images: decoded, cut to size, and kept in memory where they are few.

Runs in threads and in processes of their own, so it does not import JAX.
"""

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Int, UInt8

from stce_jax.data.crops import center_crop, open_for_crops, random_resized_crop
from stce_jax.data.large_jpegs import LargeJpeg
from stce_jax.data.order import Order
from stce_jax.data.records import Source
from stce_jax.data.resizing import INTERPOLATIONS, RESIZES, Pixels, vector_resize
from stce_jax.errors import check_choice, check_pair, check_range, check_whole

CROPS = ("random_resized", "center")
SAMPLES = 8  # images that are decoded to estimate whether all of them fit into the cache
_at_work: dict[int, tuple[str, float]] = {}  # thread of this process -> (name of the image it reads, since when)

View = UInt8[np.ndarray, "size size 3"]


def slowest() -> tuple[str, float] | None:
    """(name, seconds) of the image that a thread of this process has been reading longest, or None."""
    since = min(list(_at_work.values()), key=lambda work: work[1], default=None)
    return (since[0], time.monotonic() - since[1]) if since else None


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """Within it this thread reads the image of this name, see `slowest`."""
    thread = threading.get_ident()
    _at_work[thread] = (name, time.monotonic())
    try:
        yield
    finally:
        del _at_work[thread]


class Views:
    """The views of a source's images, of one size unless another is asked for.

    A view is drawn in two steps: pixels that are the same every time, which small sources keep in memory, and a random
    crop of them. Safe to use from several threads; a copy in another process starts with an empty cache.

    Attributes:
      size: side in pixels.
      label_shape: of a label, () where each image has one.

    Args:
      source: the images.
      size: side of the views in pixels.
      crop: "random_resized", or "center" for the evaluation's view.
      fraction, interpolation: see `center_crop`; only for that crop.
      area, ratio, resize: see `random_resized_crop`; only for that crop.
      cache_bytes: if all the pixels of the first step seem to fit into this many bytes, they are kept; never more.
    """

    def __init__(
        self,
        source: Source,
        *,
        size: int,
        crop: str,
        fraction: float,
        interpolation: str = INTERPOLATIONS[0],
        area: tuple[float, float] = (0.0, 0.0),
        ratio: tuple[float, float] = (0.0, 0.0),
        resize: str = "pillow",
        cache_bytes: int = 0,
    ) -> None:
        self.size = size
        self.label_shape: tuple[int, ...] = getattr(source, "label_shape", ())
        self._source, self._resize = source, "pillow" if crop == "center" else resize
        self._pixels: Callable[..., View] | None  # (pixels, size=)
        self._cut: Callable[..., View] | None  # (generator, pixels, size=)
        if crop == "center":
            crop_center = functools.partial(center_crop, fraction=fraction, interpolation=interpolation)
            self._pixels, self._cut = crop_center, None
        else:
            vector_resize(resize == "simd")  # fails at once if it is not installed
            cut = functools.partial(random_resized_crop, area=area, ratio=ratio, resize=resize)
            self._pixels, self._cut = None, cut
        self._cache_bytes = cache_bytes
        self._start()

    def _start(self) -> None:
        self._cache: list[tuple[Pixels, np.int32] | None] = []
        self._fits: bool | None = None  # not yet known
        self._room = self._cache_bytes
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        own = ("_cache", "_fits", "_room", "_lock")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def __len__(self) -> int:
        return len(self._source)

    def view(
        self, index: int, rng: np.random.Generator | None = None, size: int | None = None
    ) -> tuple[View, np.int32]:
        """The view of image `index` and its label; a random crop takes its draws from `rng`, whatever its size.

        Args:
          index: 0 to the number of images, less one.
          rng: only for random crops.
          size: side in pixels; None: the views' own.

        Raises:
          DataError: the image cannot be read; it is named.
        """
        size = size or self.size
        pixels, label = self._kept(index, size)
        if self._cut is None:
            assert not isinstance(pixels, LargeJpeg)
            return pixels, label
        assert rng is not None, "a random crop needs a source of draws"
        with _reading(self._source.name(index)):  # of a `LargeJpeg` only now
            return self._cut(rng, pixels, size=size), label

    def _kept(self, index: int, size: int) -> tuple[Pixels | LargeJpeg, np.int32]:
        if self._fits is None:
            with self._lock:
                if self._fits is None:
                    fits = self._all_fit()
                    self._cache = [None] * len(self) if fits else []
                    self._fits = fits
        if not self._fits:
            return self._decoded(index, size)
        kept = self._cache[index]
        if kept is not None and (self._pixels is None or len(kept[0]) == size):  # of a random crop all sizes are cut
            return kept
        pixels, label = self._decoded(index, size)
        if isinstance(pixels, LargeJpeg):  # never kept, for what is kept must have no effect on the pixels
            return pixels, label
        with self._lock:  # the estimate may have been wrong
            before = self._cache[index]
            room = self._room + (before[0].nbytes if before else 0)
            if pixels.nbytes <= room:
                self._room, self._cache[index] = room - pixels.nbytes, (pixels, label)
        return pixels, label

    def _all_fit(self) -> bool:
        """Whether all images seem to fit, estimated from a few spread over the source."""
        if not self._cache_bytes:
            return False
        places = np.linspace(0, len(self) - 1, min(SAMPLES, len(self))).astype(int)
        seen = [self._decoded(int(place), self.size)[0] for place in places]
        sizes = [0 if isinstance(pixels, LargeJpeg) else pixels.nbytes for pixels in seen]
        return float(np.mean(sizes)) * len(self) <= self._cache_bytes

    def _decoded(self, index: int, size: int) -> tuple[Pixels | LargeJpeg, np.int32]:
        with _reading(self._source.name(index)):
            record = self._source[index]
            label = np.int32(record["label"])
            pixels = open_for_crops(record["image"], record["name"], self._resize)
            if self._pixels is None:
                return pixels, label
            return self._pixels(pixels, size=size), label


class Example(TypedDict):
    """A view and its label."""

    image: View
    label: np.int32


class Stream:
    """One process's training examples, numbered from 0, of the endless stream that all processes share.

    Args:
      views: see `Views`.
      order: of the images, see `make_order`.
      seed: of the crops.
      position: of the first batch's first image.
      places: of this process's rows, which images of a batch they hold, counted in the stream's order.
      batch_size: of the whole batch.
      size_of: number of a batch, from 0 -> side of its views in pixels; None: the views' own.
    """

    def __init__(
        self,
        views: Views,
        order: Order,
        *,
        seed: int,
        position: int,
        places: Int[np.ndarray, "rows"],
        batch_size: int,
        size_of: Callable[[int], int] | None = None,
    ) -> None:
        self._views, self._order, self._seed = views, order, seed
        self._position, self._places, self._batch_size, self._size_of = position, places, batch_size, size_of

    def example(self, number: int) -> Example:
        """Example `number`, 0 or more; its crop depends on its position in the shared stream alone."""
        step, row = divmod(number, len(self._places))
        position = self._position + step * self._batch_size + int(self._places[row])
        draws = np.random.Generator(np.random.Philox(key=(self._seed, position)))
        size = self._size_of(step) if self._size_of else None
        image, label = self._views.view(self._order(position), draws, size)
        return {"image": image, "label": label}


def check_options(
    *,
    crop: str,
    crop_area: tuple[float, ...],
    crop_ratio: tuple[float, ...],
    resize: str,
    eval_crop_fraction: float,
    eval_interpolation: str | None,
    repeats: int,
) -> None:
    """Raises ConfigError if these options of `config.augment` cannot work."""
    check_choice("config.augment.crop", crop, CROPS)
    check_pair("config.augment.crop_area", crop_area, 1e-6, 1)
    check_pair("config.augment.crop_ratio", crop_ratio, 0.01, 100)
    check_choice("config.augment.resize", resize, RESIZES)
    check_range("config.augment.eval_crop_fraction", eval_crop_fraction, 0.01, 1)
    if eval_interpolation is not None:
        check_choice("config.augment.eval_interpolation", eval_interpolation, INTERPOLATIONS)
    check_whole("config.augment.repeats", repeats, 1, 100)
