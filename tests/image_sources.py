"""Small data sets in every form that `stce prepare` reads, made of the same images.

Images are a dict {(split, WordNet id, file name): bytes}, with ILSVRC2012's names.
"""

import csv
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.io
from PIL import Image

from stce_jax.data import places

WNIDS = ("n01440764", "n02012849", "n03126707", "n02979186")  # two of them are called "crane"
THREE = ("n01443537", "n01514668", "n01531178")
OTHERS = ("n01443537", "n07753592")  # also in the archives, and not wanted


def picture(seed, format="JPEG", size=(48, 40)):
    """An image file with content of its own."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    stream = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(stream, format=format)
    return stream.getvalue()


def make_images(train=3, val=2, wnids=WNIDS + OTHERS):
    """The images of all classes, wanted or not; numbers of validation images run through the classes."""
    images, number = {}, 0
    for k, wnid in enumerate(sorted(wnids)):
        for i in range(train):
            images["train", wnid, f"{wnid}_{100 * i + k}.JPEG"] = picture((0, k, i))
        for i in range(val):
            number += 1
            images["val", wnid, f"ILSVRC2012_val_{number:08d}.JPEG"] = picture((1, k, i))
    return images


IMAGES = make_images()
WANTED = {key: content for key, content in IMAGES.items() if key[1] in WNIDS}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def make_unreadable(monkeypatch, path):
    """Lets nobody list a directory, not even root, whom permissions do not stop."""

    def refusing(function):
        def listed(directory="."):
            if str(directory) == str(path):
                raise PermissionError(13, "Permission denied", str(directory))
            return function(directory)

        return listed

    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))


def tree(root, images):
    for (split, wnid, name), content in images.items():
        write(root / split / wnid / name, content)
    return root


def flat_tree(root, images):
    """Validation images in no class folders, labels in Kaggle's table beside them."""
    for (split, wnid, name), content in images.items():
        write(root / "train" / wnid / name if split == "train" else root / "val" / name, content)
    write_solution(root / "LOC_val_solution.csv", images)
    return root


def write_solution(path, images):
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("ImageId", "PredictionString"))
        for (split, wnid, name), _ in images.items():
            if split == "val":
                table.writerow((name.removesuffix(".JPEG"), f"{wnid} 85 1 499 272 {wnid} 3 4 5 6 "))


def kaggle_paths(images):
    """{path in Kaggle's layout: content}; the classes are dealt out to four training folders."""
    wnids = sorted({wnid for _, wnid, _ in images})
    paths = {
        f"train.X{wnids.index(wnid) % 4 + 1}/{wnid}/{name}" if split == "train" else f"val.X/{wnid}/{name}": content
        for (split, wnid, name), content in images.items()
    }
    return paths | {"Labels.json": json.dumps(dict.fromkeys(wnids, "words")).encode()}


def kaggle_tree(root, images):
    for path, content in kaggle_paths(images).items():
        write(root / path, content)
    return root


def kaggle_zip(path, images, prefix=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in kaggle_paths(images).items():
            archive.writestr(prefix + name, content)
    return path


def tar_of(files):
    """The bytes of a tar of {name: content}."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def tars(root, images, devkit=True):
    """ILSVRC2012_img_train.tar, a tar of tars, ILSVRC2012_img_val.tar, and the development kit."""
    classes = {}
    for (split, wnid, name), content in images.items():
        if split == "train":
            classes.setdefault(wnid, {})[name] = content
    write(
        root / "ILSVRC2012_img_train.tar",
        tar_of({f"{wnid}.tar": tar_of(files) for wnid, files in sorted(classes.items())}),
    )
    val = {name: content for (split, _, name), content in images.items() if split == "val"}
    write(root / "ILSVRC2012_img_val.tar", tar_of(dict(sorted(val.items()))))
    if devkit:
        write(root / "ILSVRC2012_devkit_t12.tar.gz", devkit_of(images))
    return root


def devkit_of(images):
    """The packed development kit; ILSVRC's numbers of the classes are not in the order of their WordNet ids."""
    wnids = sorted({wnid for _, wnid, _ in images}, reverse=True)
    synsets = np.zeros((len(wnids), 1), dtype=[("ILSVRC2012_ID", object), ("WNID", object), ("words", object)])
    for number, wnid in enumerate(wnids, 1):
        synsets[number - 1, 0] = (number, wnid, "words")
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": synsets})
    by_number = {int(name[-13:-5]): wnids.index(wnid) + 1 for (split, wnid, name) in images if split == "val"}
    truth = "".join(f"{by_number.get(number, 1)}\n" for number in range(1, max(by_number) + 1)).encode()
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in {
            "meta.mat": meta.getvalue(),
            "ILSVRC2012_validation_ground_truth.txt": truth,
        }.items():
            member = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/data/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def parquet(root, images, names=None, paths=True, row_group_size=3, shards=2):
    """Parquet shards as Hugging Face has them.

    Args:
      root: directory.
      images: see above.
      names: of the labels, for the metadata, or None for no metadata.
      paths: whether the images' paths are given, and end with the class.
      row_group_size: rows of a group.
      shards: files of a split.
    """
    wnids = sorted({wnid for _, wnid, _ in images})
    for split, called in (("train", "train"), ("val", "validation")):
        rows = [
            {
                "image": {"bytes": content, "path": f"{name.removesuffix('.JPEG')}_{wnid}.JPEG" if paths else None},
                "label": wnids.index(wnid),
            }
            for (of, wnid, name), content in images.items()
            if of == split
        ]
        type_of = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        schema = pa.schema({"image": type_of, "label": pa.int64()})
        if names is not None:
            described = {"info": {"features": {"label": {"names": list(names), "_type": "ClassLabel"}}}}
            schema = schema.with_metadata({"huggingface": json.dumps(described)})
        (root / "data").mkdir(parents=True, exist_ok=True)
        for shard in range(shards):
            table = pa.Table.from_pylist(rows[shard::shards], schema=schema)
            path = root / "data" / f"{called}-{shard:05d}-of-{shards:05d}.parquet"
            pq.write_table(table, path, row_group_size=row_group_size)
    return root


SLOW = """
import sys, time
from stce_jax.verbs import prepare
from stce_jax.prepare import inspection
def slowly(*arguments, inspect=inspection._inspect):
    time.sleep(0.3)
    return inspect(*arguments)
inspection._inspect = slowly
from stce_jax.cli import main
main(sys.argv[1:])
"""


def left_in(directory):
    """What lies in a data directory and should not: anything but finished data sets and their lock files."""
    return [
        str(path.relative_to(directory))
        for path in directory.rglob("*")
        if path.is_file() and path.suffix != ".lock" and path.parent.name != places.VERSION
    ] + [str(path) for path in directory.rglob("incomplete*")]


def start_slowly(*words):
    """The command in a process of its own, at about 0.3 s an image and thread; stopped before it can end."""
    command = [sys.executable, "-c", SLOW, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
