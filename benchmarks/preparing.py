"""How fast `stce prepare` is: the same JPEGs as folders, ILSVRC2012's tars, Kaggle's zip and parquet shards; and of
folders as raw pixels.

Copies of the images in --images, each with bytes of its own behind its end, which decoders pass over; without --images,
smooth synthetic JPEGs of 500 x 375 pixels. Every measurement is a process of its own; its memory is the largest that
it held at any time. Whatever is read comes from the page cache, so that this is the processor's speed, not the disk's.

  python benchmarks/preparing.py --images=DIR --count=2000
"""

import argparse
import io
import itertools
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measure import machine, markdown_table
from PIL import Image

RAW = 256  # pixels
WNIDS = ("n01440764", "n01443537", "n01484850", "n01491361")
# Runs the command and says what a process of its own held: ru_maxrss would begin with its parent's.
CHILD = """
import sys
from stce_jax.cli import main
try:
    main(sys.argv[1:])
finally:
    with open("/proc/self/status") as lines:
        print("peak", next(line for line in lines if line.startswith("VmHWM")).split()[1], "kB")
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="", help="folder with JPEG files, at any depth (default: synthetic ones)")
    parser.add_argument("--count", type=int, default=2000, help="images in all, a tenth of them for validation (2000)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of threads (1 2)")
    arguments = parser.parse_args()
    jpegs = read_jpegs(arguments.images) if arguments.images else synthetic_jpegs()
    rows, fingerprints = [], {0: set(), RAW: set()}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "list.txt").write_text("\n".join(WNIDS))
        for form, write in FORMS.items():
            write(folder / form, list(copies(jpegs, arguments.count)))
            kinds = (0, RAW) if form == "folders" else (0,)
            for side, workers in itertools.product(kinds, arguments.workers):
                seconds, peak, fingerprint = measure(folder, form, workers, side)
                fingerprints[side].add(fingerprint)
                rows.append(
                    {
                        "form": f"{form}, --raw_short_side={side}" if side else form,
                        "threads": workers,
                        "images/s": f"{arguments.count / seconds:,.0f}",
                        "peak memory, MiB": f"{peak:,.0f}",
                    }
                )
    assert all(len(found) == 1 for found in fingerprints.values()), "the forms gave different data sets"
    print(f"{machine()}\n{arguments.count:,} images, on average {np.mean([len(jpeg) for jpeg in jpegs]):,.0f} bytes\n")
    print(markdown_table(rows))


def read_jpegs(folder):
    return [path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")]


def synthetic_jpegs(count=50):
    jpegs = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).resize((500, 375))
        noisy = np.clip(np.asarray(coarse) + rng.normal(0, 9, (375, 500, 3)), 0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(noisy).save(stream, format="JPEG", quality=90)
        jpegs.append(stream.getvalue())
    return jpegs


def copies(jpegs, count):
    """Yields (split, WordNet id, file name, bytes)."""
    for k in range(count):
        wnid = WNIDS[k % len(WNIDS)]
        split = "val" if k // len(WNIDS) % 10 == 0 else "train"
        name = f"ILSVRC2012_val_{k + 1:08d}.JPEG" if split == "val" else f"{wnid}_{k}.JPEG"
        yield split, wnid, name, jpegs[k % len(jpegs)] + k.to_bytes(4, "little")


def write_folders(root, images):
    for split, wnid, name, content in images:
        (root / split / wnid).mkdir(parents=True, exist_ok=True)
        (root / split / wnid / name).write_bytes(content)


def write_tars(root, images):
    root.mkdir()
    inner = {wnid: tar({name: b for s, w, name, b in images if (s, w) == ("train", wnid)}) for wnid in WNIDS}
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar({f"{wnid}.tar": content for wnid, content in inner.items()}))
    val = {name: (wnid, content) for split, wnid, name, content in images if split == "val"}
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar({name: content for name, (_, content) in val.items()}))
    (root / "LOC_val_solution.csv").write_text("".join(f"{name[:-5]},{wnid}\n" for name, (wnid, _) in val.items()))


def tar(files):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def write_zip(root, images):
    root.mkdir()
    with zipfile.ZipFile(root / "imagenet100.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for split, wnid, name, content in images:
            folder = "val.X" if split == "val" else f"train.X{WNIDS.index(wnid) + 1}"
            archive.writestr(f"{folder}/{wnid}/{name}", content)


def write_parquet(root, images):
    root.mkdir()
    schema = pa.schema({"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()})
    for split, called in (("train", "train"), ("val", "validation")):
        rows = [
            {"image": {"bytes": content, "path": f"{name[:-5]}_{wnid}.JPEG"}, "label": WNIDS.index(wnid)}
            for of, wnid, name, content in images
            if of == split
        ]
        path = root / f"{called}-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=100)


FORMS = {"folders": write_folders, "tars": write_tars, "Kaggle zip": write_zip, "parquet": write_parquet}


def measure(folder, form, workers, side):
    """(seconds, peak memory in MiB, fingerprint) of one preparation; the seconds include starting Python."""
    out = folder / f"{form} {workers} {side}"
    words = ["prepare", "imagenet100", f"--source={folder / form}", f"--classes={folder / 'list.txt'}"]
    words += [f"--data_dir={out}", f"--workers={workers}", f"--raw_short_side={side}"]
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-P", "-c", CHILD, *words], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stderr)
    lines = [line.split() for line in done.stdout.splitlines()]
    peak = next(int(words[1]) / 1024 for words in lines if words[:1] == ["peak"])
    return seconds, peak, next(words[1] for words in lines if words[:1] == ["fingerprint"])


if __name__ == "__main__":
    main()
