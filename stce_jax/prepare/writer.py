"""Writes images of given classes as a tfds dataset, without TensorFlow.

The images' bytes are stored as they are, in ArrayRecord files. The dataset describes itself, classes included:
`tfds.builder_from_directory` reads it.
"""

import contextlib
import functools
import io
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.writer import ExampleWriter

from stce_jax.data import builders
from stce_jax.data.places import VERSION

IMAGES_A_SHARD = 2000


class _UncompressedWriter(ExampleWriter):
    """For raw pixels: zstd would save a fifth, and take three times as long as all the rest of reading."""

    def write(self, path: Any, examples: Any) -> None:
        records = ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed")
        for _, example in examples:
            records.write(example)
        records.close()


class _Builder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes prepared examples.

    Args:
      class_ids: in the order of their labels.
      shards: {split: list of functions}; each function returns an iterator of (key, example).
      metadata: MetadataDict to store beside the images; filled while the last shard is written.
      raw: whether the images are raw pixels.
    """

    VERSION = tfds.core.Version(VERSION)

    def __init__(
        self,
        *,
        class_ids: Sequence[str],
        shards: Mapping[str, list[Callable[[], Iterator]]],
        metadata: Any,
        raw: bool,
        **options: Any,
    ) -> None:
        self._class_ids, self._shards, self._metadata, self._raw = class_ids, shards, metadata, raw
        super().__init__(**options)

    def _info(self) -> Any:
        what = "the images' pixels as PPM files" if self._raw else "the images' original bytes"
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),
                    "label": tfds.features.ClassLabel(names=self._class_ids),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            description=f"Prepared by `stce prepare`; {what}. odd.csv lists unusual images.",
            metadata=self._metadata,
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> Any:
        del dl_manager  # nothing to download
        return self._shards

    def _example_writer(self) -> Any:
        return _UncompressedWriter(self.info.file_format) if self._raw else super()._example_writer()


def write(
    dataset: str,
    config: str,
    class_ids: Sequence[str],
    splits: Mapping[str, int],
    stream: Iterator[dict[str, Any] | None],
    metadata: Callable[[], Mapping[str, Any]],
    directory: Path,
    raw: bool = False,
) -> str:
    """Writes a data set below `directory`.

    Args:
      dataset: its name, see `catalog.PREPARED`.
      config: name of the config, which names the directory.
      class_ids: in the order of their labels.
      splits: {split: number of items that the stream has for it}, in the order of the stream.
      stream: iterator of examples {"image": bytes, "label": int, "file_name": str}, or None for one to be left out.
      metadata: returns what to store beside the images; called after the last example.
      directory: an existing one.
      raw: whether the images are raw pixels, which are stored uncompressed.

    Returns:
      The path of what was written.

    Raises:
      RuntimeError, OSError: it cannot be written.
    """

    stored = tfds.core.MetadataDict()

    def shard(count: int, last: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, example in enumerate(itertools.islice(stream, count)):
            if example is not None:
                yield key, example | {"image": _Once(example["image"])}
        if last:
            stored.update(metadata())

    shards: dict[str, list[Callable[[], Iterator]]] = {}
    written, total = 0, sum(splits.values())
    for split, count in splits.items():
        shards[split] = []
        for size in _sizes(count):
            written += size
            shards[split].append(functools.partial(shard, size, written == total))
    # No subclass of its own for each name: tfds has an imagenet2012 that needs TensorFlow.
    named = type(dataset, (_Builder,), {"name": dataset}, skip_registration=True)
    with _quiet():
        builder = named(
            class_ids=class_ids,
            shards=shards,
            metadata=stored,
            raw=raw,
            data_dir=directory,
            config=tfds.core.BuilderConfig(name=config, version=VERSION),
            file_format="array_record",
        )
        builders.write(builder)
    return builder.data_path


class _Once:
    """Bytes that tfds can read once; then they are freed, for tfds keeps all examples of a shard, to count them."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self) -> bytes:
        data, self._data = self._data, b""
        return data


def _sizes(count: int) -> list[int]:
    """Sizes of equal shards, with one image more in the first ones; bad images do not change their number."""
    shards = -(-count // IMAGES_A_SHARD)
    return [count // shards + (index < count % shards) for index in range(shards)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides tfds's messages about downloads that never happen and about custom configurations."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
