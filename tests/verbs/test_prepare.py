"""`stce prepare` end to end: one data set whatever form it comes in, all or nothing, and what it says."""

import contextlib
import csv
import io
import json
import os
import re
import resource
import shutil
import sys
import time
import zipfile
from pathlib import Path

import pytest
from image_sources import (
    IMAGES,
    OTHERS,
    WANTED,
    WNIDS,
    flat_tree,
    kaggle_tree,
    kaggle_zip,
    left_in,
    make_images,
    parquet,
    picture,
    tars,
    tree,
    write,
)
from PIL import Image

from stce_jax.data import catalog, class_lists
from stce_jax.errors import ConfigError, DataError
from stce_jax.prepare import inspection
from stce_jax.prepare import writer as imagenet100
from stce_jax.prepare.conversion import examples
from stce_jax.prepare.messages import ImageProgress
from stce_jax.prepare.report import Report
from stce_jax.prepare.sources import references
from stce_jax.verbs.prepare import prepare

FORMS = {
    "tree": lambda root: tree(root, IMAGES),
    "flat val": lambda root: flat_tree(root, IMAGES),
    "tars": lambda root: tars(root, IMAGES),
    "kaggle": lambda root: kaggle_tree(root, IMAGES),
    "kaggle zip": lambda root: kaggle_zip(root / "imagenet100.zip", IMAGES),
    "parquet": lambda root: parquet(root, IMAGES),
}


@pytest.fixture
def classes(tmp_path):
    """A list of four classes."""
    path = tmp_path / "four.txt"
    path.write_text("\n".join(WNIDS))
    return str(path)


def config_of(wnids, name="four"):
    return f"{name}-{class_lists.list_hash(wnids)}"


def contents(source):
    return [(record["label"], record["image"]) for record in (source[index] for index in range(len(source)))]


def refusal(*arguments, kind=DataError, **options):
    with pytest.raises(kind) as caught:
        prepare(*arguments, **options)
    message = str(caught.value)
    assert message and "\n" not in message, f"not one line: {message!r}"
    return message


# --- one data set


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(report, opened data set, data directory) for each form; the number of threads differs from form to form."""
    root = tmp_path_factory.mktemp("forms")
    (root / "four.txt").write_text("\n".join(WNIDS))
    results = {}
    for workers, (form, build) in enumerate(FORMS.items(), 1):
        data_dir = root / form / "out"
        with contextlib.redirect_stdout(io.StringIO()) as said:
            report = prepare(
                "imagenet100",
                str(build(root / form / "in")),
                classes=str(root / "four.txt"),
                data_dir=str(data_dir),
                workers=workers % 3 + 1,
            )
        dataset = catalog.open_dataset("imagenet100", str(data_dir), classes=str(root / "four.txt"))
        results[form] = report, dataset, data_dir, said.getvalue()
    return results


@pytest.mark.parametrize("form", FORMS)
def test_images_labels_and_splits_are_the_sources(prepared, form):
    _, dataset, _, _ = prepared[form]
    assert dataset.class_ids == tuple(sorted(WNIDS)), "labels must be the sorted WordNet ids"
    assert dataset.class_names == class_lists.class_names(sorted(WNIDS))
    for split, source in (("train", dataset.train), ("val", dataset.val)):
        expected = [(sorted(WNIDS).index(wnid), content) for (of, wnid, _), content in WANTED.items() if of == split]
        assert sorted(contents(source)) == sorted(expected), split


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_order_and_fingerprint(prepared, form):
    report, dataset, _, _ = prepared[form]
    first_report, first, _, _ = prepared["tree"]
    assert contents(dataset.train) == contents(first.train) and contents(dataset.val) == contents(first.val)
    assert report.fingerprint == first_report.fingerprint == dataset.fingerprint


@pytest.mark.parametrize("form", FORMS)
def test_what_is_said(prepared, form):
    report, _, data_dir, said = prepared[form]
    assert f"source: {report.source}" in said, "how the source was recognised must be said"
    assert f"fingerprint {report.fingerprint}" in said and report.directory in said
    assert "preparing 20 of 20 images" in said and "left" in said and "images/s" in said
    assert re.search(r"\nn01440764 +3 +2  tench, Tinca tinca\n", said)
    assert f"{len(OTHERS)}  other classes" in said
    assert left_in(data_dir) == []


def test_directory_says_which_classes_it_holds(prepared):
    report, _, data_dir, _ = prepared["tree"]
    assert Path(report.directory) == data_dir / "imagenet100" / config_of(WNIDS) / "1.0.0"
    assert report.counts == {"train": [3] * 4, "val": [2] * 4} and report.config == config_of(WNIDS)


def test_tfds_alone_reads_it(prepared):
    import tensorflow_datasets as tfds

    report, dataset, _, _ = prepared["tars"]
    builder = tfds.builder_from_directory(report.directory)
    assert builder.info.full_name == f"imagenet100/{config_of(WNIDS)}/1.0.0"
    assert builder.info.features["label"].names == sorted(WNIDS)
    assert builder.info.splits["train"].num_examples == 12
    metadata = dict(builder.info.metadata)
    assert metadata["fingerprint"] == dataset.fingerprint and metadata["class_ids"] == sorted(WNIDS)
    source = builder.as_data_source("train[50%:]", decoders={"image": tfds.decode.SkipDecoding()})
    assert len(source) == 6 and source[0]["image"] == dataset.train[6]["image"]
    assert source[0]["file_name"].decode().startswith(sorted(WNIDS)[int(source[0]["label"])])


def test_records_are_named_after_their_files(prepared):
    record = prepared["tree"][1].val[0]
    assert record["name"].startswith("ILSVRC2012_val_000000") and config_of(WNIDS) in record["name"]


def test_any_encoding_is_stored_bit_for_bit_and_whatever_names(tmp_path):
    """Under names of classes and files that no one would choose."""
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated = io.BytesIO()
    Image.new("RGB", (40, 50), (9, 8, 7)).save(rotated, format="JPEG", exif=exif)
    cmyk = io.BytesIO()
    Image.new("CMYK", (40, 50), (9, 8, 7, 6)).save(cmyk, format="JPEG")
    formats = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
    files = {f"{k}.JPEG": picture(k, format) for k, format in enumerate(formats)}
    files |= {"été 1.jpeg": rotated.getvalue(), "deep/er/cmyk.jpg": cmyk.getvalue(), "tail.jpg": picture(5) + b"tail"}
    for split in ("train", "val"):
        for name, content in files.items():
            write(tmp_path / "in" / split / "Hügel & Tal" / name, content)
    report = prepare("folder", str(tmp_path / "in"), data_dir=str(tmp_path / "out"))
    dataset = catalog.open_dataset("folder", str(tmp_path / "out"))
    assert sorted(image for _, image in contents(dataset.train)) == sorted(files.values())
    assert {record["name"].rpartition(", image")[0] for record in map(dataset.train.__getitem__, range(10))} == set(
        files
    )
    assert report.class_ids == dataset.class_ids == ("Hügel & Tal",)
    for kind in ("PNG named as a JPEG", "GIF named as a JPEG", "CMYK", "EXIF rotation (not applied)", "palette"):
        assert report.odd[kind] == 2, (kind, report.odd)


def test_many_shards_hold_the_same_records(tmp_path, monkeypatch, prepared, classes):
    monkeypatch.setattr(imagenet100, "IMAGES_A_SHARD", 5)
    report = prepare("imagenet100", str(tree(tmp_path / "in", IMAGES)), classes=classes, data_dir=str(tmp_path / "out"))
    names = sorted(path.name for path in Path(report.directory).glob("*train*"))
    assert names == [f"imagenet100-train.array_record-0000{k}-of-00003" for k in range(3)]
    assert report.fingerprint == prepared["tree"][0].fingerprint
    dataset = catalog.open_dataset("imagenet100", str(tmp_path / "out"), classes=classes)
    assert contents(dataset.train) == contents(prepared["tree"][1].train)


def test_the_fingerprint_is_of_split_label_and_bytes_in_order():
    def fingerprint(*images, class_ids=("a", "b")):
        tally = inspection.Tally(class_ids, len(images))
        for split, class_id, byte in images:
            reference = references.Reference(split, class_id, "x.png", None)
            tally.add(inspection.Inspected(reference, digest=bytes([byte]) * 32))
        return tally.fingerprint

    one, two = ("train", "a", 1), ("val", "b", 2)
    others = [
        fingerprint(two, one),
        fingerprint(one),
        fingerprint(one, ("val", "b", 3)),
        fingerprint(one, ("val", "a", 2)),
        fingerprint(one, ("train", "b", 2)),
        fingerprint(one, two, class_ids=("a", "b", "c")),
    ]
    assert len({fingerprint(one, two), *others}) == 7 and fingerprint(one, two) == fingerprint(one, two)


@pytest.mark.parametrize("change", ["bytes", "split", "class", "missing"])
def test_the_fingerprint_notices_every_change(tmp_path, prepared, change, classes):
    images = dict(WANTED)
    key = next(iter(images))
    content = images.pop(key)
    split, wnid, name = key
    if change == "bytes":
        images[key] = content + b"\0"
    elif change == "split":
        images["val", wnid, name] = content
    elif change == "class":
        images[split, WNIDS[1], name] = content
    report = prepare("imagenet100", str(tree(tmp_path / "in", images)), classes=classes, data_dir=str(tmp_path / "out"))
    assert report.fingerprint != prepared["tree"][0].fingerprint


@pytest.mark.slow
def test_imagenet2012_takes_all_thousand(tmp_path, monkeypatch):
    thousand = class_lists.load_class_ids("all")
    images = make_images(train=1, val=1, wnids=thousand)
    tree(tmp_path / "in", images)
    report = prepare("imagenet2012", str(tmp_path / "in"), data_dir=str(tmp_path / "out"))
    dataset = catalog.open_dataset("imagenet2012", str(tmp_path / "out"))
    assert dataset.class_ids == thousand and len(dataset.train) == len(dataset.val) == 1000
    assert Path(report.directory).parent.name == "all-385e0240"
    assert len(report.lines()) < 40, "a thousand lines help nobody"


# --- once, or not at all


def test_what_is_there_is_not_made_again(tmp_path, classes, capsys):
    source = tree(tmp_path / "in", IMAGES)
    first = prepare("imagenet100", str(source), classes=classes, data_dir=str(tmp_path / "out"))
    shutil.rmtree(source)
    (tmp_path / "same.txt").write_text("# another file with the same classes\n" + "\n".join(WNIDS[::-1]))
    capsys.readouterr()
    again = prepare("imagenet100", "nowhere", classes=str(tmp_path / "same.txt"), data_dir=str(tmp_path / "out"))
    assert again.fingerprint == first.fingerprint and again.counts == first.counts
    said = capsys.readouterr().out
    assert "already prepared" in said and first.fingerprint in said
    assert f"made of class folders in {source}, 0 images left out" in said


def test_what_is_there_is_found_where_nothing_may_be_written(tmp_path, classes):
    """A directory in the lock's place stands for a data directory that one may only read."""
    source, out = tree(tmp_path / "in", IMAGES), tmp_path / "out"
    first = prepare("imagenet100", str(source), classes=classes, data_dir=str(out))
    (lock,) = out.rglob("*.lock")
    lock.unlink()
    lock.mkdir()
    assert prepare("imagenet100", str(source), classes=classes, data_dir=str(out)).fingerprint == first.fingerprint


def test_folders_of_one_name_are_not_taken_for_each_other(tmp_path):
    for parent, images in (("a", WANTED), ("b", make_images(train=4, wnids=WNIDS))):
        tree(tmp_path / parent / "pets", images)
    prepare("folder", str(tmp_path / "a" / "pets"), data_dir=str(tmp_path / "out"))
    again = prepare("folder", str(tmp_path / "a" / "pets" / "train" / ".."), data_dir=str(tmp_path / "out"))
    assert sum(again.counts["train"]) == 12
    message = refusal("folder", str(tmp_path / "b" / "pets"), data_dir=str(tmp_path / "out"))
    assert str(tmp_path / "a" / "pets") in message and "rename" in message


@pytest.mark.parametrize("damage", ["shard gone", "shard cut off", "field more", "field less", "count", "no object"])
def test_what_is_there_and_damaged_is_refused(tmp_path, monkeypatch, classes, damage):
    monkeypatch.setattr(imagenet100, "IMAGES_A_SHARD", 5)
    source, out = tree(tmp_path / "in", IMAGES), tmp_path / "out"
    report = prepare("imagenet100", str(source), classes=classes, data_dir=str(out))
    shard, metadata = (Path(report.directory) / name for name in (SHARD, "metadata.json"))
    stored = json.loads(metadata.read_text())
    if damage == "shard gone":
        shard.unlink()
    elif damage == "shard cut off":
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    elif damage == "field more":
        metadata.write_text(json.dumps(stored | {"more": 1}))
    elif damage == "field less":
        metadata.write_text(json.dumps({key: value for key, value in stored.items() if key != "bad"}))
    elif damage == "count":
        metadata.write_text(json.dumps(stored | {"counts": {"train": [3] * 4, "val": [3] * 4}}))
    else:
        metadata.write_text(json.dumps(stored | {"counts": 1}))
    message = refusal("imagenet100", str(source), classes=classes, data_dir=str(out))
    assert report.directory in message and "delete it" in message


SHARD = "imagenet100-train.array_record-00000-of-00003"  # not the last one


@pytest.mark.parametrize("form", ["tree", "parquet"])
def test_a_data_directory_that_cannot_be_written_is_named(tmp_path, classes, form):
    write(tmp_path / "file", b"no directory")
    source = str(FORMS[form](tmp_path / "in"))
    message = refusal("imagenet100", source, classes=classes, data_dir=str(tmp_path / "file"))
    assert str(tmp_path / "file") in message and "--data_dir" in message


# --- bad and odd images


def test_bad_images_are_refused_by_name_all_of_them_and_nothing_is_left(tmp_path, classes, capsys):
    root = tree(tmp_path / "in", IMAGES)
    bad = [f"{WNIDS[0]}_9{k}.JPEG" for k in range(5)]
    for k, name in enumerate(bad):
        write(root / "train" / WNIDS[0] / name, picture(k)[: 20 * k])
    message = refusal("imagenet100", str(root), classes=classes, data_dir=str(tmp_path / "out"))
    assert message.startswith("5 images cannot be used") and "--on_bad=skip" in message
    assert sum(name in message for name in bad) == 3, "the first few are named"
    said = capsys.readouterr().out
    assert all(said.count(name) == 1 for name in bad), "the complete list is printed"
    assert left_in(tmp_path / "out") == [] and not list((tmp_path / "out").rglob("1.0.0"))


def test_bad_images_can_be_left_out(tmp_path, classes, prepared, capsys):
    root = tree(tmp_path / "in", IMAGES)
    write(root / "val" / WNIDS[1] / "ILSVRC2012_val_00000099.JPEG", picture(1)[:100])
    report = prepare("imagenet100", str(root), classes=classes, data_dir=str(tmp_path / "out"), on_bad="skip")
    assert report.bad == 1 and report.fingerprint == prepared["tree"][0].fingerprint
    assert "1  left out: cannot be decoded: val/n02012849/ILSVRC2012_val_00000099.JPEG" in capsys.readouterr().out
    assert rows_of(report)["cannot be decoded"] == ["val/n02012849/ILSVRC2012_val_00000099.JPEG"]


def test_images_that_cannot_be_read_are_refused_even_where_bad_ones_are_left_out(tmp_path, classes, capsys):
    root = tree(tmp_path / "in", IMAGES)
    (root / "train" / WNIDS[0] / "gone.JPEG").symlink_to(tmp_path / "nowhere.JPEG")
    write(root / "train" / WNIDS[0] / "bad.JPEG", b"no image")
    message = refusal("imagenet100", str(root), classes=classes, data_dir=str(tmp_path / "out"), on_bad="skip")
    assert message.startswith("1 images cannot be read: ") and "gone.JPEG" in message
    assert "bad.JPEG" in capsys.readouterr().out and left_in(tmp_path / "out") == []


def test_after_a_bad_image_nothing_is_stored_and_all_is_looked_at():
    images = [references.Reference("train", "a", f"{k}.png", None) for k in range(3)]
    inspected = [
        inspection.Inspected(images[0], b"x", bytes(32)),
        inspection.Inspected(images[1], error="bad"),
        inspection.Inspected(images[2], b"x", bytes(32)),
    ]
    for on_bad, stored in (("error", [True, False, False]), ("skip", [True, False, True])):
        tally = inspection.Tally(["a"], 3)
        stream = examples(inspected, tally, ImageProgress("preparing", 3), on_bad)
        assert [example is not None for example in stream] == stored
        assert tally.counts["train"] == [2] and len(tally.bad) == 1


def test_a_source_of_bad_images_alone_is_refused_in_one_line(tmp_path, classes):
    root = tree(tmp_path / "in", dict.fromkeys(IMAGES, b"no image"))
    for on_bad in ("error", "skip"):
        refusal("imagenet100", str(root), classes=classes, data_dir=str(tmp_path / "out"), on_bad=on_bad)


def test_names_that_are_no_utf8_are_escaped(tmp_path, classes, monkeypatch):
    root = tree(tmp_path / "in", IMAGES)
    odd = os.fsencode(root / "train" / WNIDS[0]) + b"/caf\xe9.jpg"
    Path(os.fsdecode(odd)).write_bytes(picture(5, size=(20, 20)))
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding="utf-8", errors="strict"))
    prepare("imagenet100", str(root), classes=classes, data_dir=str(tmp_path / "out"))
    assert rb"caf\udce9.jpg" in output.getvalue()


@pytest.mark.parametrize("form, verb", [("tree", "preparing"), ("tree", "fingerprint"), ("parquet", "copying")])
def test_a_reader_that_has_gone_is_no_fault_of_the_data(tmp_path, classes, monkeypatch, form, verb):
    """As in `stce prepare ... | head -1`."""

    class Output(io.StringIO):
        def write(self, text):
            if verb in text:
                raise BrokenPipeError(32, "Broken pipe")
            return super().write(text)

    monkeypatch.setattr(sys, "stdout", Output())
    with pytest.raises(BrokenPipeError):
        prepare("imagenet100", str(FORMS[form](tmp_path / "in")), classes=classes, data_dir=str(tmp_path / "out"))


@pytest.mark.parametrize("form", ["tars", "kaggle zip", "parquet"])
def test_no_file_of_the_source_stays_open(tmp_path, classes, form):
    source = FORMS[form](tmp_path / "in")
    for _ in range(2):  # the second time nothing is prepared
        prepare("imagenet100", str(source), classes=classes, data_dir=str(tmp_path / "out"))
    links = (os.path.join("/proc/self/fd", number) for number in os.listdir("/proc/self/fd"))
    assert not [link for link in links if os.path.islink(link) and os.readlink(link).startswith(str(tmp_path))]


def test_what_is_there_is_checked_with_few_files_open(tmp_path, monkeypatch, classes):
    """ImageNet has hundreds of shards, and a process may often have 1024 files open, or 256."""
    monkeypatch.setattr(imagenet100, "IMAGES_A_SHARD", 1)
    report = prepare("imagenet100", str(tree(tmp_path / "in", IMAGES)), classes=classes, data_dir=str(tmp_path / "out"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 10, limits[1]))
    try:
        again = Report.of_prepared(Path(report.directory))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert again.counts == report.counts and len(list(Path(report.directory).glob("*array_record*"))) == 20


def test_a_class_of_which_nothing_is_left_is_refused(tmp_path, classes):
    root = tree(tmp_path / "in", IMAGES)
    for path in (root / "val" / WNIDS[1]).iterdir():
        path.write_bytes(b"no image")
    message = refusal("imagenet100", str(root), classes=classes, data_dir=str(tmp_path / "out"), on_bad="skip")
    assert f"no val image of class {WNIDS[1]}" in message and left_in(tmp_path / "out") == []


def rows_of(report):
    """{kind: images} of odd.csv."""
    kinds = {}
    with open(Path(report.directory) / "odd.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            kinds.setdefault(row["kind"], []).append(row["image"])
    return kinds


def test_images_with_the_same_bytes_are_found(tmp_path):
    both, classes, twice = picture(1), picture(2), picture(3)
    for path, content in {
        "train/a/1.png": both,
        "val/a/2.png": both,
        "train/a/3.png": classes,
        "train/b/4.png": classes,
        "val/b/5.png": twice,
        "val/b/6.png": twice,
        "val/b/7.png": picture(4),
    }.items():
        write(tmp_path / "in" / path, content)
    report = prepare("folder", str(tmp_path / "in"), data_dir=str(tmp_path / "out"))
    rows = rows_of(report)
    assert sorted(rows["same bytes in train and val"]) == ["train/a/1.png", "val/a/2.png"]
    assert sorted(rows["same bytes in two classes"]) == ["train/a/3.png", "train/b/4.png"]
    assert sorted(rows["same bytes twice"]) == ["val/b/5.png", "val/b/6.png"]
    assert report.odd["same bytes in train and val"] == 2
    said = "\n".join(report.lines())
    for pair in ("train and val: train/a/1.png = val/a/2.png", "in two classes: train/a/3.png = train/b/4.png"):
        assert pair in said, f"it is not said which image belongs to which:\n{said}"


def test_each_copy_is_listed_beside_the_first():
    tally = inspection.Tally(["a"], 5)
    for number in range(5):
        tally.add(inspection.Inspected(references.Reference("train", "a", f"{number}.png", None), b"x", bytes(32)))
    tally.add_repeated()
    assert {image: other for _, image, other in tally.odd} == {
        "train/a/0.png": "train/a/1.png",
        **{f"train/a/{number}.png": "train/a/0.png" for number in range(1, 5)},
    }
    assert tally.same == {"same bytes twice": ["train/a/0.png = train/a/1.png = train/a/2.png and 2 more"]}


def test_odd_real_files_are_stored_reported_or_refused_as_their_table_says(test_data, tmp_path, capsys):
    """ODD.csv row by row: what decodes is stored as it is, what does not is named, what is no image is passed over."""
    with zipfile.ZipFile(test_data / "data" / "imagenet_samples.zip") as archive:
        rows = list(csv.DictReader(io.TextIOWrapper(archive.open("odd/ODD.csv"), encoding="utf-8")))
        content = {row["path"]: archive.read(row["path"]) for row in rows}
    for path, data in content.items():
        write(tmp_path / "in" / "train" / Path(path).parts[2] / Path(path).name, data)
    classes = {path.name for path in (tmp_path / "in" / "train").iterdir()}
    for k, name in enumerate(sorted(classes)):
        write(tmp_path / "in" / "val" / name / f"{k}.JPEG", picture((5, k)))
        write(tmp_path / "in" / "train" / name / f"extra_{k}.JPEG", picture((6, k)))
    report = prepare("folder", str(tmp_path / "in"), data_dir=str(tmp_path / "out"), on_bad="skip")
    said = capsys.readouterr().out
    found = rows_of(report)
    dataset = catalog.open_dataset("folder", str(tmp_path / "out"))
    stored = [image for _, image in contents(dataset.train)]

    def named(row):
        return f"train/{Path(row['path']).parts[2]}/{Path(row['path']).name}"

    for row in rows:
        group, name = row["path"].split("/")[1], named(row)
        if group == "not_images":
            assert any(name.split("/", 1)[1] in ignored for ignored in found[inspection.IGNORED]), name
        elif group == "undecodable":
            assert name in found[inspection.BAD] and name in said, name
        else:
            assert content[row["path"]] in stored, f"{name} is not stored bit for bit"
            for kind, expected in {
                "CMYK": row["mode"] == "CMYK",
                "grey": row["mode"] in ("1", "L", "LA", "I;16"),
                "palette": row["mode"] == "P",
                "EXIF rotation (not applied)": row["exif_orientation"] not in ("", "0", "1"),
                "smaller than 32 pixels": min(map(int, row["size"].split("x"))) < 32,
                "same bytes in two classes": row["kind"] == "same_bytes_in_two_classes",
                "PNG named as a JPEG": "png_named" in row["kind"],
                "GIF named as a JPEG": "gif_named" in row["kind"],
                "WEBP named as a JPEG": "webp_named" in row["kind"],
                "BMP named as a JPEG": "bmp_named" in row["kind"],
                "16 bits a channel": "16bit" in row["kind"] or "16bit" in row["path"],
            }.items():
                assert (name in found.get(kind, [])) == expected, f"{name}: {kind}"
    assert report.bad == sum("/undecodable/" in row["path"] for row in rows) > 5
    assert report.ignored == sum("/not_images/" in row["path"] for row in rows) == 4


def test_reading_does_not_run_ahead_of_writing():
    begun = []

    def read(reference):
        begun.append(reference)
        return picture(0)

    images = [references.Reference("train", "a", f"{k}.png", None) for k in range(100)]
    with contextlib.closing(inspection.inspect_all(images, read, workers=2)) as stream:
        first = next(stream)
        time.sleep(0.3)
        assert first.reference == images[0] and len(begun) <= 8, "more than four images a thread are held"
        assert [inspected.reference for inspected in stream] == images[1:]


# --- arguments, and the command


def test_a_prepared_folder_is_chosen_by_name(tmp_path):
    for name, split_class in (("pets", "cat"), ("wild", "wolf")):
        for split in ("train", "val"):
            write(tmp_path / name / split / split_class / "1.png", picture(1))
        prepare("folder", str(tmp_path / name), data_dir=str(tmp_path / "out"))
    assert catalog.open_dataset("folder", str(tmp_path / "out"), classes="wild").class_ids == ("wolf",)
    for given in ("", "cows"):
        with pytest.raises(ConfigError, match=r"pets-[0-9a-f]{8}, wild-[0-9a-f]{8}"):
            catalog.open_dataset("folder", str(tmp_path / "out"), classes=given)


@pytest.mark.parametrize(
    "dataset, options, named",
    [
        ("imagenet", {}, "imagenet100, imagenet2012, folder"),
        ("folder", {"classes": "cmc"}, "--classes=cmc"),
        ("imagenet100", {"classes": "none"}, "kaggle, cmc, podnet"),
        ("imagenet100", {"on_bad": "ignore"}, "error, skip"),
        ("imagenet100", {"workers": -1}, "--workers is -1"),
        ("imagenet100", {"source": ""}, "--source"),
    ],
)
def test_wrong_arguments(tmp_path, dataset, options, named):
    options = {"data_dir": str(tmp_path / "out")} | options
    assert named in refusal(dataset, options.pop("source", str(tmp_path)), kind=ConfigError, **options)
    assert not (tmp_path / "out").exists()


def test_class_folders_whose_names_would_not_come_back_are_refused(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / "in" / split / " a" / "1.png", picture(1))
    assert "' a'" in refusal("folder", str(tmp_path / "in"), data_dir=str(tmp_path / "out"))
