"""How long it takes to open a data set of 1.3 million images, and in how much memory: prepared ones, and class folders.

    python benchmarks/opening.py                                    1,300,000 prepared images, 130,000 files in folders
    python benchmarks/opening.py --files 1300000                    as many files, which take minutes to make and delete

Images are a few bytes each, for nothing of them is decoded: what is opened are the names, the records' places and the
classes, 1,000 of them. Everything is made in a temporary directory, which is removed at the end. Each opening is a
process of its own and does what `stce train` does before its first batch: the data set is opened, its fingerprint
found, and, with a share held out, the labels; then the order of an epoch is drawn and one record of each split is read.
Memory is what came with the libraries and the config, before anything was opened, and how much the process held at
most beyond that. Labels of prepared images are read once and kept, hence a second row. Files and folders come from the
page cache: a network's file system answers later.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from measure import machine, markdown_table

from stce_jax.data import places
from stce_jax.data.order import make_order
from stce_jax.prepare import writer
from stce_jax.training import assemble as runs
from stce_jax.workdir.meta import checkpoint_meta

CLASSES, MEGABYTE = 1000, 1e6
JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00"


def class_id(number):
    return f"n{number:08d}"


def make_records(folder, count, val):
    """A prepared data set of that many images: `stce prepare` writes a small one, whose records are repeated."""
    ids = [class_id(number) for number in range(CLASSES)]
    metadata = {"class_ids": ids, "class_names": ids, "fingerprint": "0" * 64}
    examples = [{"image": JPEG, "label": label, "file_name": f"{ids[label]}_{label}.JPEG"} for label in range(CLASSES)]
    splits = {"train": CLASSES, "val": CLASSES}
    name = places.config_name("made", ids)
    written = Path(writer.write("folder", name, ids, splits, iter(2 * examples), lambda: metadata, folder))
    first = next(written.glob("*-train.array_record-00000-of-*"))
    reader = ArrayRecordReader(str(first))
    records = reader.read_all()
    reader.close()
    info = json.loads((written / places.INFO_FILE).read_text())
    for split, images in (("train", count), ("val", val)):
        for path in written.glob(f"*-{split}.array_record-*"):
            path.unlink()
        lengths = [min(writer.IMAGES_A_SHARD, images - at) for at in range(0, images, writer.IMAGES_A_SHARD)]
        for number, length in enumerate(lengths):
            shard = ArrayRecordWriter(str(written / _shard(split, number, len(lengths))), "group_size:1")
            for place in range(length):
                shard.write(records[place % len(records)])
            shard.close()
        (described,) = (one for one in info["splits"] if one["name"] == split)
        described["shardLengths"] = [str(length) for length in lengths]
    (written / places.INFO_FILE).write_text(json.dumps(info))
    return folder


def _shard(split, number, count):
    return f"folder-{split}.array_record-{number:05d}-of-{count:05d}"


def make_files(folder, count, val):
    """Class folders with that many files, called as ImageNet's are."""
    for split, images in (("train", count), ("val", val)):
        for label in range(CLASSES):
            own = folder / split / class_id(label)
            own.mkdir(parents=True)
            for number in range(images * label // CLASSES, images * (label + 1) // CLASSES):
                (own / f"{class_id(label)}_{number}.JPEG").write_bytes(JPEG)
    return folder


def memory(of="VmRSS"):
    """Bytes that this process holds, or, as "VmHWM", held at most; what `resource` says begins with its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(of))


def open_once(data_dir, holdout):
    """What opening took, as a dict for JSON."""
    words = ["--config.dataset=folder", f"--config.data_dir={data_dir}", f"--config.holdout={holdout}"]
    config = runs.load_config("stce_vit_s", words)
    import tensorflow_datasets  # noqa: F401  its import is `stce train`'s, whatever is opened

    before, begin, cpu = memory(), time.perf_counter(), time.process_time()
    dataset = runs.open_dataset(config)
    checkpoint_meta(config, dataset)
    make_order("", None, count=len(dataset.train), seed=0, salt=0, repeats=1)(0)
    for source in (dataset.train, dataset.val):
        assert source[len(source) - 1]["image"] == JPEG
    seconds = {"wall": time.perf_counter() - begin, "cpu": time.process_time() - cpu}
    return {"images": len(dataset.train), "before": before, "after": memory("VmHWM"), **seconds}


def measure(data_dir, holdout=0.0):
    command = [sys.executable, __file__, "--open", str(data_dir), str(holdout)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def row(what, found, whole):
    """With what a data set of `whole` images would take, if time and memory grow as the number of images does."""
    grown = found["after"] - found["before"]
    times = whole / found["images"]
    cells = {"opened": what, "training images": f"{found['images']:,}"}
    cells |= {"s": f"{found['wall']:.1f}", "CPU s": f"{found['cpu']:.1f}"}
    cells |= {"MB before": f"{found['before'] / MEGABYTE:,.0f}", "MB more": f"{grown / MEGABYTE:,.0f}"}
    return cells | {f"for {whole:,}": f"{times * found['cpu']:.1f} CPU s, {times * grown / MEGABYTE:,.0f} MB more"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_300_000, help="prepared images for training (1,300,000)")
    parser.add_argument("--files", type=int, default=130_000, help="files for training (130,000)")
    parser.add_argument("--whole", type=int, default=1_300_000, help="images of the last column (1,300,000)")
    parser.add_argument("--open", nargs=2, metavar=("DIR", "SHARE"), help="open one in here")
    options = parser.parse_args()
    if options.open:
        print(json.dumps(open_once(options.open[0], float(options.open[1]))))
        return
    rows = []
    made = (("prepared", make_records, options.records), ("class folders", make_files, options.files))
    for what, make, count in made:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), count, max(count // 25, CLASSES))
            os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")  # of labels
            measure(folder)  # from here on all is in the page cache
            cases = ((what, 0.0), (f"{what}, a tenth held out", 0.1), (f"{what}, the same again", 0.1))
            for name, holdout in cases:
                rows.append(row(name, measure(folder, holdout), options.whole))
                print(rows[-1], file=sys.stderr, flush=True)
    print(f"{machine()}\n")
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
