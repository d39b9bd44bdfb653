"""How fast images are decoded, cut and fed: each step alone on one core, then the whole loader.

    python benchmarks/input_pipeline.py                                  on JPEGs made here, 500x375
    python benchmarks/input_pipeline.py --images=DIR                     on the JPEGs of that size below DIR
    python benchmarks/input_pipeline.py --tensorflow=venv/bin/python     beside tf.data in that environment

The resize could move to the device, which then gets crops padded to one shape; the two rows "unresized" and "resize on
the device" are what that would cost the host and, computed on this machine's processor, the device. "raw" are pixels
that `stce prepare --raw_short_side=256` stored, "by Pillow" is augment.resize="pillow" in place of "fast". Before the
tables stands how many random crops have fewer pixels than they are given.

Shape letters: B batch, H W padded height and width, S side of the result.
"""

import argparse
import contextlib
import functools
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import simplejpeg
from measure import interleave, machine, markdown_table, median_estimate
from PIL import Image

from stce_jax.data import catalog, crops, decode, loader
from stce_jax.data.order import make_order
from stce_jax.data.views import Views
from stce_jax.verbs.prepare import prepare

SIZE, AREA, RATIO, FRACTION = 224, (0.08, 1.0), (3 / 4, 4 / 3), 0.875
WIDE, NARROW = 500, 375
LOADERS = ((1, 1, 0), (2, 1, 0), (2, 2, 0), (2, 4, 0), (1, 1, 1), (2, 1, 2))  # cores, threads, workers
FEW_LOADERS = ((1, 1, 0), (2, 2, 0), (2, 1, 2))  # of raw pixels and of Pillow's resize
PADDED, RAW = 512, 256


def read_files(folder):
    """The bytes of the JPEGs in a folder."""
    return [path.read_bytes() for path in sorted(folder.glob("*.JPEG"))]


def collect(images, folder):
    """Puts up to 256 JPEGs of 500x375 pixels, either way up, into a folder of their own."""
    if images:
        found = [path for path in sorted(Path(images).rglob("*")) if path.suffix.lower() in (".jpeg", ".jpg")]
        sizes = ((path, Image.open(path).size) for path in found)
        chosen = [path for path, size in sizes if sorted(size) == [NARROW, WIDE]][:256]
        for number, path in enumerate(chosen):
            (folder / f"{number}.JPEG").write_bytes(path.read_bytes())
        return
    rng = np.random.default_rng(0)
    for number in range(64):  # coarse and fine noise, in a mixture that JPEG makes 55 KB of
        coarse = Image.fromarray(rng.integers(0, 256, (38, 50, 3), dtype=np.uint8)).resize((WIDE, NARROW), 3)
        pixels = np.clip(np.asarray(coarse) + rng.normal(0, 7, (NARROW, WIDE, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.JPEG", quality=85)


def prepare_both(folder):
    """The images of a folder as two data sets below it, of files and of raw pixels; returns their training splits."""
    for split in catalog.SPLITS:
        (folder / "tree" / split).mkdir(parents=True, exist_ok=True)
        (folder / "tree" / split / "all").symlink_to(folder / "jpegs")
    with contextlib.redirect_stdout(io.StringIO()):
        for side in (0, RAW):
            prepare("folder", folder / "tree", data_dir=folder / "prepared", raw_short_side=side)
    return [open_prepared(folder, side) for side in (0, RAW)]


def open_prepared(folder, side):
    return catalog.open_dataset("folder", Path(folder) / "prepared", raw_short_side=side).train


def crops_with_too_few_pixels(images, draws=200):
    """Shares of the random crops of images with fewer pixels than SIZE x SIZE; and in each direction."""
    boxes = np.array(
        [
            crops._draw_box(np.random.default_rng((number, draw)), *image.shape[:2], AREA, RATIO)[2:]
            for number, image in enumerate(images)
            for draw in range(draws)
        ]
    )  # [N, 2]: height, width
    return [(boxes.prod(axis=1) < SIZE**2).mean(), (boxes < SIZE).all(axis=1).mean(), (boxes < SIZE).any(axis=1).mean()]


def padded_crop(rng, image):
    """(the crop in the corner of uint8 [PADDED, PADDED, 3], its height and width)."""
    top, left, height, width = crops._draw_box(rng, *image.shape[:2], AREA, RATIO)
    padded = np.zeros((PADDED, PADDED, 3), np.uint8)
    padded[:height, :width] = image[top : top + height, left : left + width]
    return padded, np.array([height, width])


def resize_weights(length, size=SIZE, longest=PADDED):
    """Pillow's antialiased bicubic weights [S, longest] from `length` pixels to `size`."""
    scale = length / size
    support = jnp.maximum(scale, 1.0)
    centers = (jnp.arange(size) + 0.5) * scale
    places = jnp.arange(longest)
    x = jnp.abs((places[None, :] + 0.5 - centers[:, None]) / support)
    cubic = jnp.where(x < 1, (1.5 * x - 2.5) * x * x + 1, jnp.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0))
    cubic = jnp.where(places[None, :] < length, cubic, 0)
    return cubic / cubic.sum(axis=1, keepdims=True)


@jax.jit
def device_resize(padded, shapes):
    """uint8 [B, PADDED, PADDED, 3], int [B, 2] -> uint8 [B, S, S, 3]."""
    rows, columns = jax.vmap(resize_weights)(shapes[:, 0]), jax.vmap(resize_weights)(shapes[:, 1])  # [B, S, PADDED]
    wide = jnp.einsum("bxw,bhwc->bhxc", columns, padded.astype(jnp.float32))
    wide = jnp.clip(jnp.round(wide), 0, 255)
    return jnp.clip(jnp.round(jnp.einsum("byh,bhxc->byxc", rows, wide)), 0, 255).astype(jnp.uint8)


def unresized_crop(rng, image):
    """The crop alone, as it goes to the resize."""
    top, left, height, width = crops._draw_box(rng, *image.shape[:2], AREA, RATIO)
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def large_photos(images):
    """JPEG files of 4,000 x 3,000 pixels, tiled with images at their own size: as sharp as those are."""
    upright = [image if image.shape[0] < image.shape[1] else image.transpose(1, 0, 2) for image in images]
    files = []
    for start in range(4):
        tiles = [upright[(start + 7 * place) % len(upright)] for place in range(64)]
        rows = [np.concatenate(tiles[8 * row : 8 * row + 8], axis=1) for row in range(8)]
        files.append(simplejpeg.encode_jpeg(np.concatenate(rows), quality=92, colorsubsampling="420"))
    return files


def steps(encoded, stored_files, stored_pixels):
    """{name: function over all images}; the numbers are of one core, for nothing here starts a thread but XLA."""
    images = [decode.decode_image(file, "image") for file in encoded]
    crop = functools.partial(crops.random_resized_crop, size=SIZE, area=AREA, ratio=RATIO)

    def pillow(file):
        return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))

    def as_torchvision(rng, file):
        image = Image.open(io.BytesIO(file)).convert("RGB")
        top, left, height, width = crops._draw_box(rng, image.height, image.width, AREA, RATIO)
        box = (left, top, left + width, top + height)
        return np.asarray(image.crop(box).resize((SIZE, SIZE), Image.Resampling.BICUBIC))

    def every(function, items):
        return lambda: [function(item) for item in items]

    def cut(function, items):  # each image with draws of its own, the same in every round
        return lambda: [function(np.random.default_rng(number), item) for number, item in enumerate(items)]

    cuts = cut(padded_crop, images[:32])()
    padded = jnp.asarray(np.stack([pixels for pixels, _ in cuts]))
    shapes = jnp.asarray(np.stack([shape for _, shape in cuts]))
    expected = np.stack(cut(crop, images[:32])()).astype(int)
    error = np.abs(np.asarray(device_resize(padded, shapes)).astype(int) - expected)
    assert error.mean() < 0.25 and (error <= 2).mean() > 0.99, "the device's resize is not Pillow's"
    raw = [record["image"] for record in map(stored_pixels.__getitem__, range(len(stored_pixels)))]

    def of_record(function, source):
        return lambda rng, index: function(rng, decode.decode_image(source[index]["image"], "image"))

    def as_shipped(rng, file):
        return fast(rng, crops.open_for_crops(file, "image", "fast"))

    def with_crop(crop):
        return lambda rng, file: crop(rng, decode.decode_image(file, "image"))

    def evaluation(file):
        return crops.center_crop(decode.decode_image(file, "image"), SIZE, FRACTION)

    fast, large = functools.partial(crop, resize="fast"), large_photos(images)
    files, pixels = range(len(stored_files)), range(len(stored_pixels))
    return {
        "simplejpeg decode": (len(images), every(lambda file: simplejpeg.decode_jpeg(file, "RGB"), encoded)),
        "Pillow decode": (len(images), every(pillow, encoded)),
        "random crop and resize": (len(images), cut(fast, images)),
        "random crop and resize by Pillow": (len(images), cut(crop, images)),
        "**decode and crop, as shipped**": (len(images), cut(as_shipped, encoded)),
        "decode and crop, resized by Pillow": (len(images), cut(with_crop(crop), encoded)),
        "12 megapixels: decode and crop, as shipped": (len(large), cut(as_shipped, large)),
        "12 megapixels: decode and crop, resized by Pillow": (len(large), cut(with_crop(crop), large)),
        "decode and crop, Pillow alone": (len(images), cut(as_torchvision, encoded)),
        "decode and crop, unresized": (len(images), cut(with_crop(padded_crop), encoded)),
        "resize on the device": (len(cuts), lambda: device_resize(padded, shapes)),
        "evaluation's view": (len(images), every(evaluation, encoded)),
        "read, decode and crop": (
            len(images),
            cut(lambda rng, index: as_shipped(rng, stored_files[index]["image"]), files),
        ),
        "raw: crop, unresized": (len(raw), cut(with_crop(unresized_crop), raw)),
        "raw: read and crop, unresized": (len(raw), cut(of_record(unresized_crop, stored_pixels), pixels)),
        "raw: crop and resize": (len(raw), cut(with_crop(fast), raw)),
        "raw: crop and resize by Pillow": (len(raw), cut(with_crop(crop), raw)),
        "raw: read, crop and resize": (len(raw), cut(of_record(fast, stored_pixels), pixels)),
        "raw: evaluation's view": (len(raw), every(evaluation, raw)),
    }


def measure_loader(folder, threads, workers, seconds, side, resize):
    """Images a second of the whole loader, in this process, on the cores it may use."""
    source = open_prepared(folder, side)
    options = {"size": SIZE, "crop": "random_resized", "fraction": FRACTION, "area": AREA, "ratio": RATIO}
    views = Views(source, **options, resize=resize)
    order = make_order("", None, count=len(source), seed=0, salt=0, repeats=1)
    options = {"batch_size": 128, "seed": 0, "position": 0, "timeout": 60.0}
    with loader.train_batches(views, order, **options, threads=threads, workers=workers) as batches:
        for _ in range(4):  # what was made ahead before the clock starts would count as made in no time
            next(batches)
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            count += len(next(batches)["label"])
        return count / (time.perf_counter() - start)


def on_cores(cores, command):
    """Runs a command that prints a number on so many cores, and returns the number."""
    chosen = ",".join(map(str, sorted(os.sched_getaffinity(0))[:cores]))
    done = subprocess.run(["taskset", "-c", chosen, *command], stdout=subprocess.PIPE, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="folder with JPEGs; those of 500x375 pixels are taken")
    parser.add_argument("--tensorflow", help="a Python interpreter that has TensorFlow")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement of a loader")
    # FOLDER THREADS WORKERS SIDE RESIZE: a child of this script
    parser.add_argument("--loader", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.loader:
        folder, threads, workers, side, resize = arguments.loader
        print(measure_loader(folder, int(threads), int(workers), arguments.seconds, int(side), resize))
        return

    with tempfile.TemporaryDirectory() as name:
        folder, jpegs = Path(name), Path(name) / "jpegs"
        jpegs.mkdir()
        collect(arguments.images, jpegs)
        encoded = read_files(jpegs)
        print(f"{machine()}; {len(encoded)} images of {np.mean([len(file) for file in encoded]) / 1000:.0f} KB\n")
        sources = prepare_both(folder)
        for kind, source in zip(("files", "raw pixels"), sources, strict=True):
            images = [decode.decode_image(source[index]["image"], "image") for index in range(len(source))]
            stored = sum(path.stat().st_size for path in Path(source._directory).glob("*train.array_record*"))
            area, both, either = crops_with_too_few_pixels(images)
            print(
                f"{kind}: {stored / len(images) / 1000:.0f} KB an image on disk; of the random crops {area:.1%} have "
                f"fewer pixels than {SIZE} x {SIZE}, {both:.1%} in both directions, {either:.1%} in at least one"
            )
        print()

        counted = steps(encoded, *sources)
        seconds = interleave({name: function for name, (_, function) in counted.items()}, arguments.rounds)
        each = {name: np.array(times.cpu) / counted[name][0] for name, times in seconds.items()}
        shipped = each["**decode and crop, as shipped**"]
        rows = [
            {
                "one core": name,
                "ms an image": f"{1e3 * np.median(times):.2f}",
                "images/s": f"{1 / np.median(times):,.0f}",
                "time of shipped": median_estimate(times / shipped),
            }
            for name, times in each.items()
        ]
        print(markdown_table(rows))

        rows = []
        kinds = [
            (LOADERS, 0, "fast"),
            (FEW_LOADERS, RAW, "fast"),
            (FEW_LOADERS, 0, "pillow"),
            (FEW_LOADERS, RAW, "pillow"),
        ]
        for (cores, threads, workers), side, resize in ((one, *rest) for many, *rest in kinds for one in many):
            command = [sys.executable, __file__, "--seconds", str(arguments.seconds), "--loader", name]
            speed = on_cores(cores, [*command, str(threads), str(workers), str(side), resize])
            how = f"{workers} process{'es' * (workers > 1)}" if workers else f"{threads} thread{'s' * (threads > 1)}"
            how = ("raw, " if side else "") + how + (", by Pillow" if resize == "pillow" else "")
            rows.append({"whole loader": how, "cores": cores, "images/s": f"{speed:,.0f}"})
        for cores in (1, 2) if arguments.tensorflow else ():
            script = str(Path(__file__).with_name("tf_data_reference.py"))
            speed = on_cores(cores, [arguments.tensorflow, script, str(jpegs), str(arguments.seconds)])
            rows.append({"whole loader": "tf.data", "cores": cores, "images/s": f"{speed:,.0f}"})
        print("\n" + markdown_table(rows))


if __name__ == "__main__":
    main()
