"""tfds builders for images of given classes: imagenet100, imagenet2012 and any class folders.

They write ArrayRecord files without TensorFlow; the images' bytes are stored as given. What is written says for itself
which classes it holds: anybody reads it with `tfds.builder_from_directory`.
"""

import contextlib
import functools
import io
import itertools
import logging
import os
import tempfile

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.writer import ExampleWriter

from stce_jax.data.catalog import VERSION

IMAGES_A_SHARD = 2000


class _UncompressedWriter(ExampleWriter):
    """Of raw pixels, zstd saves a fifth, and takes three times as long to read as the rest."""

    def write(self, path, examples):
        records = ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed")
        for _, example in examples:
            records.write(example)
        records.close()


class _Builder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Writes prepared examples.

    Args:
      class_ids: in the order of their labels.
      shards: {split: list of functions}; each function returns an iterator of (key, example).
      metadata: MetadataDict to store beside the images; filled while the last shard is written.
      raw: whether the images are raw pixels.
    """

    VERSION = tfds.core.Version(VERSION)

    def __init__(self, *, class_ids, shards, metadata, raw, **options):
        self._class_ids, self._shards, self._metadata, self._raw = class_ids, shards, metadata, raw
        super().__init__(**options)

    def _info(self):
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

    def _shard_iterators_per_split(self, dl_manager):
        del dl_manager  # nothing to download
        return self._shards

    def _example_writer(self):
        return _UncompressedWriter(self.info.file_format) if self._raw else super()._example_writer()


class ImageNet100(_Builder, skip_registration=True):
    name = "imagenet100"


class ImageNet2012(_Builder, skip_registration=True):  # tfds has one of its own, which needs TensorFlow
    name = "imagenet2012"


class Folder(_Builder, skip_registration=True):
    name = "folder"


BUILDERS = {builder.name: builder for builder in (ImageNet100, ImageNet2012, Folder)}


def write(dataset, config, class_ids, splits, stream, metadata, directory, raw=False):
    """Writes a data set below `directory`.

    Args:
      dataset: a key of BUILDERS.
      config: name of the config, which names the directory.
      class_ids: in the order of their labels.
      splits: {split: number of items that the stream has for it}, in the order of the stream.
      stream: iterator of examples {"image": bytes, "label": int, "file_name": str}, or None for one to be left out.
      metadata: function that returns what to store beside the images; called once the stream has ended.
      directory: an existing one.
      raw: whether the images are raw pixels, which are stored uncompressed.

    Returns:
      The path of what was written.

    Raises:
      RuntimeError, OSError: it cannot be written.
    """

    stored = tfds.core.MetadataDict()

    def shard(count, last):
        for key, example in enumerate(itertools.islice(stream, count)):
            if example is not None:
                yield key, example | {"image": _Once(example["image"])}
        if last:
            stored.update(metadata())

    shards, written, total = {}, 0, sum(splits.values())
    for split, count in splits.items():
        shards[split] = []
        for size in _sizes(count):
            written += size
            shards[split].append(functools.partial(shard, size, written == total))
    with _quiet(), tempfile.TemporaryDirectory() as no_downloads:
        builder = BUILDERS[dataset](
            class_ids=class_ids,
            shards=shards,
            metadata=stored,
            raw=raw,
            data_dir=directory,
            config=tfds.core.BuilderConfig(name=config, version=VERSION),
            file_format="array_record",
        )
        builder.download_and_prepare(download_dir=no_downloads)
    return builder.data_path


class _Once:
    """Bytes as tfds reads them, let go of as soon as it has: it keeps all examples of a shard, to count them."""

    def __init__(self, data):
        self._data = data

    def read(self):
        data, self._data = self._data, None
        return data


def _sizes(count):
    """Sizes of equal shards, with one image more in the first ones; bad images do not change their number."""
    shards = -(-count // IMAGES_A_SHARD)
    return [count // shards + (index < count % shards) for index in range(shards)]


@contextlib.contextmanager
def _quiet():
    """Without tfds's talk of downloads that never happen and of custom configurations."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
