"""How fast images are decoded, cut and fed: each step alone on one core, then the whole loader.

    python benchmarks/input_pipeline.py                                  on JPEGs made here, 500x375
    python benchmarks/input_pipeline.py --images=DIR                     on the JPEGs of that size below DIR
    python benchmarks/input_pipeline.py --tensorflow=venv/bin/python     beside tf.data in that environment

The resize could move to the device, which then gets crops padded to one shape; the two rows "unresized" and "resize on
the device" are what that would cost the host and, computed on this machine's processor, the device.

Shape letters: B batch, H W padded height and width, S side of the result.
"""

import argparse
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

from stce_jax.data import decode, loader
from stce_jax.data.views import Views

SIZE, AREA, RATIO, FRACTION = 224, (0.08, 1.0), (3 / 4, 4 / 3), 0.875
WIDE, NARROW = 500, 375
LOADERS = ((1, 1, 0), (2, 1, 0), (2, 2, 0), (2, 4, 0), (1, 1, 1), (2, 1, 2))  # cores, threads, workers
PADDED = 512


class Files:
    """The JPEGs of a folder as a source; picklable, so that workers can have it."""

    def __init__(self, folder):
        self.images = [path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.suffix.lower() == ".jpeg"]

    def __len__(self):
        return len(self.images)

    def name(self, index):
        return f"image {index}"

    def __getitem__(self, index):
        return {"image": self.images[index], "label": 0, "name": self.name(index)}


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
        pixels = np.clip(np.asarray(coarse) + rng.normal(0, 12, (NARROW, WIDE, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.JPEG", quality=85)


def padded_crop(rng, image):
    """(the crop in the corner of uint8 [PADDED, PADDED, 3], its height and width)."""
    top, left, height, width = decode._draw_box(rng, *image.shape[:2], AREA, RATIO)
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


def steps(encoded):
    """{name: function over all images}; the numbers are of one core, for nothing here starts a thread but XLA."""
    images = [decode.decode_image(file, "image") for file in encoded]
    crop = functools.partial(decode.random_resized_crop, size=SIZE, area=AREA, ratio=RATIO)

    def pillow(file):
        return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))

    def as_torchvision(rng, file):
        image = Image.open(io.BytesIO(file)).convert("RGB")
        top, left, height, width = decode._draw_box(rng, image.height, image.width, AREA, RATIO)
        box = (left, top, left + width, top + height)
        return np.asarray(image.crop(box).resize((SIZE, SIZE), Image.Resampling.BICUBIC))

    def every(function, items):
        return lambda: [function(item) for item in items]

    def cut(function, items):  # each image with draws of its own, the same in every round
        return lambda: [function(np.random.default_rng(number), item) for number, item in enumerate(items)]

    crops = cut(padded_crop, images[:32])()
    padded = jnp.asarray(np.stack([pixels for pixels, _ in crops]))
    shapes = jnp.asarray(np.stack([shape for _, shape in crops]))
    expected = np.stack(cut(crop, images[:32])()).astype(int)
    error = np.abs(np.asarray(device_resize(padded, shapes)).astype(int) - expected)
    assert error.mean() < 0.25 and (error <= 2).mean() > 0.99, "the device's resize is not Pillow's"
    return {
        "simplejpeg decode": (len(images), every(lambda file: simplejpeg.decode_jpeg(file, "RGB"), encoded)),
        "Pillow decode": (len(images), every(pillow, encoded)),
        "random crop and resize": (len(images), cut(crop, images)),
        "**decode and crop, as shipped**": (
            len(images),
            cut(lambda rng, file: crop(rng, decode.decode_image(file, "image")), encoded),
        ),
        "decode and crop, Pillow alone": (len(images), cut(as_torchvision, encoded)),
        "decode and crop, unresized": (
            len(images),
            cut(lambda rng, file: padded_crop(rng, decode.decode_image(file, "image")), encoded),
        ),
        "resize on the device": (len(crops), lambda: device_resize(padded, shapes)),
        "evaluation's view": (
            len(images),
            every(lambda file: decode.center_crop(decode.decode_image(file, "image"), SIZE, FRACTION), encoded),
        ),
    }


def measure_loader(folder, threads, workers, seconds):
    """Images a second of the whole loader, in this process, on the cores it may use."""
    views = Views(Files(folder), size=SIZE, crop="random_resized", fraction=FRACTION, area=AREA, ratio=RATIO)
    options = {"batch_size": 128, "repeats": 1, "seed": 0, "salt": 0, "start_step": 0, "timeout": 60.0}
    with loader.train_batches(views, **options, threads=threads, workers=workers) as batches:
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
    parser.add_argument("--loader", nargs=3, help=argparse.SUPPRESS)  # FOLDER THREADS WORKERS: a child of this script
    arguments = parser.parse_args()
    if arguments.loader:
        folder, threads, workers = arguments.loader
        print(measure_loader(folder, int(threads), int(workers), arguments.seconds))
        return

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        collect(arguments.images, folder)
        encoded = Files(folder).images
        print(f"{machine()}; {len(encoded)} images of {np.mean([len(file) for file in encoded]) / 1000:.0f} KB\n")

        counted = steps(encoded)
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
        for cores, threads, workers in LOADERS:
            command = [sys.executable, __file__, "--seconds", str(arguments.seconds), "--loader", name]
            speed = on_cores(cores, [*command, str(threads), str(workers)])
            how = f"{workers} process{'es' * (workers > 1)}" if workers else f"{threads} thread{'s' * (threads > 1)}"
            rows.append({"whole loader": how, "cores": cores, "images/s": f"{speed:,.0f}"})
        for cores in (1, 2) if arguments.tensorflow else ():
            script = str(Path(__file__).with_name("tf_data_reference.py"))
            speed = on_cores(cores, [arguments.tensorflow, script, name, str(arguments.seconds)])
            rows.append({"whole loader": "tf.data", "cores": cores, "images/s": f"{speed:,.0f}"})
        print("\n" + markdown_table(rows))


if __name__ == "__main__":
    main()
