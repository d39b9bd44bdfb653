"""Class folders in fewer bytes: every image's short side at most N pixels, as a JPEG of some quality.

    python benchmarks/shrink_folder.py --data_dir DIR --output images.zip --side 128 --quality 50
    python benchmarks/shrink_folder.py --data_dir DIR --output held_out --held_out 0.1

To carry images to another machine. `--held_out` lays a share of each class's training images aside as val/, and reads
no test image: what is chosen, is chosen on them. Images are read as training reads them; none is made larger. A .zip is
for `stce prepare folder --source=FILE`, or for `python -m zipfile -e`; anything else becomes a folder.
"""

import argparse
import contextlib
import io
import sys
import zipfile

import numpy as np
from PIL import Image

from stce_jax.data import catalog
from stce_jax.data.decode import decode_image
from stce_jax.errors import ConfigError, StceError, check_range, check_whole
from stce_jax.paths import absolute, named_failures, whole_file
from stce_jax.platform import terminal
from stce_jax.verbs.appearing import appearing

EPOCH = (1980, 1, 1, 0, 0, 0)  # of a file in the archive: the same images give the same bytes


def shrink(encoded, name, side, quality):
    """The bytes of an image as a small JPEG."""
    image = Image.fromarray(np.asarray(decode_image(encoded, name)))
    short = min(image.size)
    if short > side:
        size = [max(1, round(length * side / short)) for length in image.size]
        image = image.resize(size, Image.Resampling.BICUBIC)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality, optimize=True, progressive=True, subsampling="4:2:0")
    return data.getvalue()


def chosen(dataset, held_out):
    """Yields (split of the result, source, place in it, label) of all images."""
    if not held_out:
        for split in catalog.SPLITS:
            source = getattr(dataset, split)
            for place in range(len(source)):
                yield split, source, place
        return
    labels = np.array([int(dataset.train[place]["label"]) for place in range(len(dataset.train))])
    for label in range(len(dataset.class_ids)):
        places = np.random.default_rng(label).permutation(np.flatnonzero(labels == label))
        count = max(1, round(held_out * len(places)))
        if count == len(places):
            raise ConfigError(f"class {dataset.class_ids[label]} has {len(places)} images; none would be left to train")
        for number, place in enumerate(places):
            yield ("val" if number < count else "train"), dataset.train, int(place)


@contextlib.contextmanager
def writer(output):
    """A function (name, bytes) that adds a file to an archive or a folder, which appears whole."""
    if str(output).endswith(".zip"):
        with (
            named_failures(f"write {output}", "give another --output"),
            whole_file(absolute(output)) as file,
            zipfile.ZipFile(file, "w") as archive,
        ):
            yield lambda name, data: archive.writestr(zipfile.ZipInfo(name, EPOCH), data)
        return
    with appearing(output, "write", "--output") as folder:

        def write(name, data):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

        yield write


def shrink_folder(data_dir, output, *, side, quality, held_out=0.0):
    """Writes all images; returns (their number, their bytes)."""
    check_whole("--side", side, 8, 4096)
    check_whole("--quality", quality, 1, 95)
    check_range("--held_out", held_out, 0, 0.9)
    dataset = catalog.open_dataset("folder", data_dir, splits=("train",) if held_out else catalog.SPLITS)
    count = total = 0
    with writer(output) as write:
        for split, source, place in chosen(dataset, held_out):
            record = source[place]
            data = shrink(record["image"], record["name"], side, quality)
            write(f"{split}/{dataset.class_ids[record['label']]}/{place:06d}.jpg", data)
            count, total = count + 1, total + len(data)
    return count, total


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="train/<class>/ and val/<class>/, or a prepared one")
    parser.add_argument("--output", required=True, help="a .zip, or a folder that is not there")
    parser.add_argument("--side", type=int, default=128, help="pixels of the short side, at most (128)")
    parser.add_argument("--quality", type=int, default=80, help="of the JPEGs, 1 to 95 (80)")
    parser.add_argument("--held_out", type=float, default=0.0, metavar="SHARE", help="of the training images, as val/")
    options = parser.parse_args()
    kind = {"side": options.side, "quality": options.quality, "held_out": options.held_out}
    try:
        count, total = shrink_folder(options.data_dir, options.output, **kind)
    except StceError as error:
        terminal.warn(error)
        sys.exit(error.exit_code)
    terminal.say(f"{options.output}: {count:,} images, {total / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
