"""Random-access sources of records {"image": encoded bytes, "label": int, "name": str}."""

import os
from pathlib import Path

from stce_jax.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def is_image(name):
    """Whether a file is an image by its name; hidden ones, such as macOS's "._x.JPEG", and those in hidden folders
    are none."""
    hidden = any(part.startswith(".") and part != "." for part in name.split("/"))
    return name.lower().endswith(IMAGE_SUFFIXES) and not hidden


def walk_files(folder):
    """Yields the paths of all files at any depth, sorted; hidden folders are not entered.

    Links are followed, but not to a folder that one is in already: the images of other classes may lie there.

    Raises:
      OSError: a folder cannot be listed.
    """
    parents = (*Path(folder).absolute().parents, *Path(os.path.realpath(folder)).parents)
    yield from _walk(os.fspath(folder), frozenset(map(_inode, parents)))


def _walk(folder, above):
    above |= {_inode(folder)}
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if not entry.is_dir():
            yield entry.path
        elif not entry.name.startswith(".") and _inode(entry.path) not in above:
            yield from _walk(entry.path, above)


def _inode(path):
    status = os.stat(path)
    return status.st_dev, status.st_ino


class FolderSource:
    """The image files of one split's class folders, classes in the given order, files sorted by path."""

    def __init__(self, root, class_names):
        self._root, self._files = root, []
        for label, name in enumerate(class_names):
            try:
                files = sorted(path for path in walk_files(root / name) if is_image(os.path.basename(path)))
            except OSError as error:
                raise DataError(f"cannot list {error.filename}: {error.strerror}; make it readable") from error
            if not files:
                raise DataError(f"class folder {root / name} holds no image; add some, or remove the folder")
            self._files += [(path, label) for path in files]

    def __len__(self):
        return len(self._files)

    def name(self, index):
        return self._files[index][0]

    def __getitem__(self, index):
        path, label = self._files[index]
        try:
            return {"image": Path(path).read_bytes(), "label": label, "name": path}
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error

    def listing(self):
        """Yields label, path and bytes of each file: enough to notice that something has changed."""
        for path, label in self._files:
            try:
                yield f"{label} {os.path.relpath(path, self._root)} {os.stat(path).st_size}"
            except OSError as error:
                raise DataError(f"cannot read {path}: {error.strerror}") from error


class TfdsSource:
    """One split of a prepared tfds dataset, images left encoded."""

    def __init__(self, builder, split):
        import tensorflow_datasets as tfds

        self._label = f"{builder.info.full_name} {split}"
        self._directory = builder.data_path
        self._source = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        self._shards = builder.info.splits[split]

    def __len__(self):
        return len(self._source)

    def name(self, index):
        return f"image {index} of {self._label}"

    def __getitem__(self, index):
        try:
            stored = self._source[index]
            if not stored:  # array_record gives nothing where a file is cut off
                raise ValueError(f"record {index} is empty")
            record = _parsed(stored)
        except Exception as error:  # whatever array_record makes of damaged files
            raise damaged(self._directory, error) from error
        name = self.name(index)
        if "file_name" in record:
            name = f"{record['file_name'].decode(errors='replace')}, {name}"
        return {"image": record["image"], "label": record["label"], "name": name}

    def check_shards(self):
        """Counts the records of every shard and reads the last: DataError where a file is missing or cut off.

        One file is open at a time; as a source of records, each stays open.
        """
        from array_record.python.array_record_module import ArrayRecordReader

        for path, length in zip(self._shards.filepaths, self._shards.shard_lengths, strict=True):
            try:
                reader = ArrayRecordReader(os.fspath(path))
                try:
                    if reader.num_records() != length or (length and not reader.read([length - 1])[0]):
                        raise ValueError(f"{path.name} is cut off")
                finally:
                    reader.close()
            except Exception as error:  # whatever array_record makes of damaged files
                raise damaged(self._directory, error) from error


def _parsed(stored):
    """The features of a record, a value each. Of raw pixels, tfds's own parser would take as long as reading them."""
    from tensorflow_datasets.proto import tf_example_pb2

    record = {}
    for name, feature in tf_example_pb2.Example.FromString(stored).features.feature.items():
        (record[name],) = getattr(feature, feature.WhichOneof("kind")).value
    return record


def damaged(directory, error):
    """What to say of prepared files that cannot be read."""
    cause = next(iter(str(error).splitlines()), type(error).__name__)
    return DataError(f"cannot read {directory}: {cause}; delete it, and make it anew")
