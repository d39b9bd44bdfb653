"""Random-access sources of records {"image": encoded bytes, "label": int, "name": str}."""

import os
from pathlib import Path

from stce_jax.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


class FolderSource:
    """The image files of one split's class folders, classes in the given order, files sorted by path.

    Links are followed; hidden files, such as the "._" ones that macOS leaves beside images, are passed over.
    """

    def __init__(self, root, class_names):
        self._root, self._files = root, []
        for label, name in enumerate(class_names):
            files = sorted(
                os.path.join(folder, file)
                for folder, _, files in os.walk(root / name, followlinks=True)
                for file in files
                if file.lower().endswith(IMAGE_SUFFIXES) and not file.startswith(".")
            )
            if not files:
                raise DataError(f"class folder {root / name} holds no image; add some, or remove the folder")
            self._files += [(path, label) for path in files]

    def __len__(self):
        return len(self._files)

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
        self._source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        try:
            record = self._source[index]
            if not record["image"]:  # array_record gives nothing where a file is cut off
                raise ValueError(f"record {index} is empty")
        except Exception as error:  # whatever array_record makes of damaged files
            raise damaged(self._directory, error) from error
        name = f"image {index} of {self._label}"
        if "file_name" in record:
            name = f"{record['file_name'].decode(errors='replace')}, {name}"
        return {"image": record["image"], "label": int(record["label"]), "name": name}


def damaged(directory, error):
    """What to say of prepared files that cannot be read."""
    cause = next(iter(str(error).splitlines()), type(error).__name__)
    return DataError(f"cannot read {directory}: {cause}; delete it, and make it anew")
