"""Sources of images: each form is recognised, gives the same images, touches nothing else, and breaks in one line."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_sources import (
    IMAGES,
    OTHERS,
    WANTED,
    WNIDS,
    devkit_of,
    flat_tree,
    kaggle_paths,
    kaggle_tree,
    kaggle_zip,
    make_unreadable,
    parquet,
    picture,
    tar_of,
    tars,
    tree,
    write,
    write_solution,
)

from stce_jax.data import class_lists
from stce_jax.errors import DataError
from stce_jax.prepare.sources import folders, recognition, references
from stce_jax.prepare.sources.val_labels import read_labels

FORMS = {
    "tree": lambda root: tree(root, IMAGES),
    "flat val": lambda root: flat_tree(root, IMAGES),
    "tars": lambda root: tars(root, IMAGES),
    "kaggle": lambda root: kaggle_tree(root, IMAGES),
    "kaggle, a folder down": lambda root: kaggle_tree(root / "imagenet100", IMAGES).parent,
    "kaggle zip": lambda root: kaggle_zip(root / "imagenet100.zip", IMAGES),
    "kaggle zip, a folder down": lambda root: kaggle_zip(root / "archive.zip", IMAGES, prefix="imagenet100/"),
    "directory with a zip": lambda root: kaggle_zip(root / "archive.zip", IMAGES).parent,
    "parquet": lambda root: parquet(root, IMAGES),
}
SAID = {
    "tree": "class folders",
    "flat val": "class folders",
    "tars": "ILSVRC2012's archives",
    "kaggle": "Kaggle's layout",
    "kaggle zip": "Kaggle's layout",
    "directory with a zip": "Kaggle's layout",
    "parquet": "parquet",
}


def open_all(path, directory, class_ids=WNIDS, val_labels=""):
    """The opened source, ready to be read."""
    source = recognition.open_source(path, class_ids, val_labels)
    if source.stage:
        directory.mkdir(exist_ok=True)
        source.stage(directory, lambda done, total: None)
    return source


def contents(source):
    """{(split, class id, stem): bytes}"""
    return {(r.split, r.class_id, references.stem(r.name)): source.read(r) for r in source.references}


def by_stem(images):
    return {(split, wnid, Path(name).stem): content for (split, wnid, name), content in images.items()}


def refusal(*arguments, **options):
    with pytest.raises(DataError) as caught:
        recognition.open_source(*arguments, **options)
    message = str(caught.value)
    assert message and "\n" not in message, f"not one line: {message!r}"
    return message


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_wanted_images_bit_for_bit(form, tmp_path):
    source = open_all(FORMS[form](tmp_path / "data"), tmp_path / "copy")
    assert contents(source) == by_stem(WANTED)
    assert len(source.references) == len(WANTED), "an image comes twice"
    assert source.class_ids == tuple(sorted(WNIDS))
    assert SAID[form.partition(",")[0]] in source.kind and str(tmp_path) in source.kind
    assert source.other_classes == len(OTHERS)


def test_every_form_gives_the_same_order(tmp_path):
    orders = {}
    for form, build in FORMS.items():
        source = recognition.open_source(build(tmp_path / form / "data"), WNIDS)
        ordered = references.in_order(source.references)
        orders[form] = [(r.split, r.class_id, references.stem(r.name)) for split in ordered for r in ordered[split]]
    assert all(order == orders["tree"] for order in orders.values())
    order = [wnid for split, wnid, _ in orders["tree"] if split == "train"]
    assert order != sorted(order), "classes should be mixed"


def test_the_order_depends_on_names_alone(tmp_path):
    listed = recognition.open_source(tree(tmp_path, IMAGES), WNIDS).references
    assert references.in_order(listed) == references.in_order(listed[::-1])


@pytest.mark.parametrize("form", ["tree", "tars", "kaggle zip"])
def test_all_classes_are_taken_if_none_are_named(form, tmp_path):
    source = recognition.open_source(FORMS[form](tmp_path), None)
    assert source.class_ids == tuple(sorted(WNIDS + OTHERS)) and len(source.references) == len(IMAGES)


@pytest.mark.parametrize("form", FORMS)
def test_missing_classes_are_named_and_counted(form, tmp_path):
    message = refusal(FORMS[form](tmp_path), (*WNIDS, "n02111889", "n02112018"))
    assert "2 of the 6 classes: n02111889, n02112018" in message and "train" in message


def test_a_class_without_validation_images_is_refused(tmp_path):
    images = {key: content for key, content in IMAGES.items() if key[:2] != ("val", WNIDS[0])}
    assert f"no val image of 1 of the 4 classes: {WNIDS[0]}" in refusal(tree(tmp_path, images), WNIDS)


def test_nothing_known_is_refused_with_what_is_known(tmp_path):
    (tmp_path / "train").mkdir()
    write(tmp_path / "notes.txt", b"nothing")
    for path, cause in ((tmp_path, "not recognised"), (tmp_path / "none", "nothing"), (tmp_path / "notes.txt", "not")):
        message = refusal(path, WNIDS)
        assert cause in message and "train.X1" in message and "parquet" in message and ".tar" in message


# --- folders


def test_files_that_are_no_images_by_name_are_passed_over_and_listed(tmp_path):
    root = tree(tmp_path, WANTED)
    strays = [".DS_Store", "._n01440764_0.JPEG", "Thumbs.db", "boxes.txt", ".ipynb_checkpoints/n01440764_0.JPEG"]
    for name in strays:
        write(root / "train" / "n01440764" / name, b"no image")
    write(root / "train" / "stray.JPEG", b"no class")
    write(root / "val" / "stray.JPEG", b"no class")
    source = open_all(root, tmp_path)
    assert contents(source) == by_stem(WANTED)
    assert {Path(name).name for name, _ in source.passed_over.files} == {Path(n).name for n in strays[:4]} | {
        "stray.JPEG"
    }
    assert source.passed_over.count == 6, "hidden folders are not entered"


def test_images_at_any_depth_and_through_links(tmp_path):
    write(tmp_path / "elsewhere" / "n01440764_7.JPEG", picture(7))
    root = tree(tmp_path / "data", WANTED)
    (root / "train" / "n01440764" / "more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    source = open_all(root, tmp_path)
    assert contents(source)["train", "n01440764", "n01440764_7"] == picture(7)


def test_an_empty_class_folder_is_refused(tmp_path):
    root = tree(tmp_path, IMAGES)
    (root / "train" / "empty").mkdir()
    assert "1 of the 7 classes: empty" in refusal(root, None)


def test_flat_validation_images_need_labels(tmp_path):
    root = flat_tree(tmp_path / "data", IMAGES)
    (root / "LOC_val_solution.csv").rename(tmp_path / "labels.csv")
    assert "--val_labels" in refusal(root, WNIDS)
    source = open_all(root, tmp_path, val_labels=str(tmp_path / "labels.csv"))
    assert contents(source) == by_stem(WANTED) and "labels.csv" in source.note


def zip_of(path, directory):
    """A zip of all files in a directory."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(directory.rglob("*")):
            archive.write(file, file.relative_to(directory))
    return path


@pytest.mark.parametrize("place", ["in the zip", "beside the zip"])
def test_labels_of_a_zips_flat_images_are_found(tmp_path, place):
    root = flat_tree(tmp_path / "data", IMAGES)
    if place == "beside the zip":
        (root / "LOC_val_solution.csv").rename(tmp_path / "LOC_val_solution.csv")
    source = open_all(zip_of(tmp_path / "images.zip", root), tmp_path)
    assert contents(source) == by_stem(WANTED) and "LOC_val_solution.csv" in source.note


@pytest.mark.parametrize("given", [".", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC", "zip", "zip, a folder down"])
@pytest.mark.parametrize("labels", ["LOC_val_solution.csv", "ILSVRC/ILSVRC2012_devkit_t12.tar.gz"])
def test_kaggles_download_of_ilsvrc(tmp_path, given, labels):
    root = tmp_path / "data" / "down" if given.endswith("down") else tmp_path / "data"
    flat_tree(root / "ILSVRC" / "Data" / "CLS-LOC", IMAGES)
    write(root / "ILSVRC" / "Data" / "CLS-LOC" / "test" / "ILSVRC2012_test_00000001.JPEG", picture(7))
    write(root / "ILSVRC" / "Annotations" / "CLS-LOC" / "train" / WNIDS[0] / "x.xml", b"box")
    solution = root / "ILSVRC" / "Data" / "CLS-LOC" / "LOC_val_solution.csv"
    if labels.endswith("csv"):
        solution.rename(root / labels)
    else:
        solution.unlink()
        write(root / labels, devkit_of(IMAGES))
    path = zip_of(tmp_path / "images.zip", tmp_path / "data") if given.startswith("zip") else root / given
    source = open_all(path, tmp_path)
    assert contents(source) == by_stem(WANTED) and "CLS-LOC" not in source.note and labels in source.note


@pytest.mark.parametrize("form", ["directory", "zip"])
def test_one_of_several_roots_is_not_guessed(tmp_path, form):
    root = tmp_path / "data"
    for name in ("one", "two"):
        tree(root / name, WANTED)
    path = root if form == "directory" else zip_of(tmp_path / "images.zip", root)
    message = refusal(path, WNIDS)
    assert "2 sets of images" in message and "one" in message and "two" in message


def test_two_layouts_in_one_root_are_refused(tmp_path):
    root = kaggle_tree(tree(tmp_path / "data", WANTED), WANTED)
    for path in (root, zip_of(tmp_path / "images.zip", root)):
        assert "two sets of images, in train, train.X1" in refusal(path, WNIDS)


def test_what_lies_beside_the_root_does_not_matter(tmp_path, monkeypatch):
    root = tmp_path / "data"
    tree(root / "the images", WANTED)
    tree(root / ".snapshot", WANTED)
    (root / "lost+found").mkdir()
    make_unreadable(monkeypatch, root / "lost+found")
    assert str(root / "the images") in recognition.open_source(root, WNIDS).kind


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    root = tree(tmp_path, WANTED)
    write(root / "train" / WNIDS[0] / "more" / "x.JPEG", picture(7))
    make_unreadable(monkeypatch, root / "train" / WNIDS[0] / "more")
    assert str(root / "train" / WNIDS[0] / "more") in refusal(root, WNIDS)


def test_links_upwards_bring_no_images_of_other_classes(tmp_path):
    root = tree(tmp_path, WANTED)
    for name, target in (("up", ".."), ("same", "."), ("top", "../..")):
        (root / "train" / WNIDS[0] / name).symlink_to(target, target_is_directory=True)
    assert len(recognition.open_source(root, WNIDS).references) == len(WANTED)


def test_hidden_folders_count_in_no_form(tmp_path):
    root = tree(tmp_path / "data", WANTED)
    write(root / "train" / WNIDS[0] / ".thumbs" / "x.JPEG", picture(7))
    for path in (root, zip_of(tmp_path / "images.zip", root)):
        assert len(recognition.open_source(path, WNIDS).references) == len(WANTED)


@pytest.mark.parametrize("given", [True, False])
def test_flat_images_beside_class_folders_are_strays_even_with_a_devkit(tmp_path, given):
    root = tree(tmp_path, WANTED)
    _, _, name = next(key for key in WANTED if key[0] == "val")
    write(root / "val" / name, picture(7))
    write(root / "ILSVRC2012_devkit_t12.tar.gz", devkit_of(IMAGES))
    if not given:
        write(root / "val" / "preview.JPEG", picture(8))
    source = open_all(root, tmp_path, val_labels=str(root / "ILSVRC2012_devkit_t12.tar.gz") if given else "")
    assert contents(source) == by_stem(WANTED) and len(source.references) == len(WANTED)
    assert source.passed_over.count == (1 if given else 2)


@pytest.mark.parametrize("missing", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"])
def test_a_tar_left_beside_what_was_unpacked_does_not_matter(tmp_path, missing):
    root = tree(tars(tmp_path, IMAGES), IMAGES)
    (root / missing).unlink()
    source = open_all(root, tmp_path)
    assert "class folders" in source.kind and contents(source) == by_stem(WANTED)


def test_label_files_that_are_not_there_are_refused_even_if_not_needed(tmp_path):
    assert "none.csv" in refusal(tree(tmp_path, WANTED), WNIDS, str(tmp_path / "none.csv"))
    with pytest.raises(DataError, match="~nosuchuser"):
        read_labels("~nosuchuser/labels.csv")


@pytest.mark.parametrize("form", ["tree", "tars", "kaggle zip", "parquet"])
def test_a_list_that_the_source_does_hold_is_named(tmp_path, monkeypatch, form):
    lists = {"kaggle": WNIDS, "cmc": ("n09999999",), "podnet": OTHERS}
    monkeypatch.setattr(references, "load_class_ids", lists.__getitem__)
    assert refusal(FORMS[form](tmp_path), ("n09999999",)).endswith(
        "holds all classes of --classes=kaggle, --classes=podnet)"
    )


# --- labels of the validation images

VAL = {name: wnid for split, wnid, name in IMAGES if split == "val"}


def test_labels_come_from_the_devkit_packed_or_not_or_from_lists(tmp_path):
    root = tars(tmp_path, IMAGES)
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz") as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    write_solution(tmp_path / "LOC_val_solution.csv", IMAGES)
    write(tmp_path / "pairs.txt", "".join(f"{name} {wnid}\n" for name, wnid in VAL.items()).encode())
    write(tmp_path / "id first.txt", "".join(f"{VAL[name]} {name}\n" for name in sorted(VAL)[::-1]).encode())
    windows = "\ufeff" + "".join(f"{name},{wnid}\r\n" for name, wnid in VAL.items())
    write(tmp_path / "from Windows.txt", windows.encode())
    write(tmp_path / "ordered.txt", "".join(f"{VAL[name]}\n" for name in sorted(VAL)).encode())
    for form in (
        "ILSVRC2012_devkit_t12.tar.gz",
        "unpacked",
        "unpacked/ILSVRC2012_devkit_t12",
        "LOC_val_solution.csv",
        "pairs.txt",
        "id first.txt",
        "from Windows.txt",
        "ordered.txt",
    ):
        label = read_labels(tmp_path / form)
        assert {name: label(name) for name in VAL} == VAL, form


@pytest.mark.parametrize(
    "content, named",
    [
        (b"what is this\n", "line 1"),
        (b"", "must hold"),
        (b"n01440764 tench\n", "line 1"),
        (b"ILSVRC2012_val_00000001 n01440764\nILSVRC2012_val_00000001 n01443537\n", "two labels"),
        (b"\x1f\x8bno gzip", "cannot read"),
        (tar_of({"notes.txt": b"no devkit"}), "holds no meta.mat"),
        (tar_of({"meta.mat": b"x", "ILSVRC2012_validation_ground_truth.txt": b"1\n"}), "cannot read the devkit"),
        (b"\xff\xfe\x00", "cannot read"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(tmp_path, content, named):
    write(tmp_path / "labels", content)
    with pytest.raises(DataError, match=named) as caught:
        read_labels(tmp_path / "labels")
    assert "\n" not in str(caught.value) and str(tmp_path / "labels") in str(caught.value)


def test_an_image_without_a_label_is_named(tmp_path):
    write(tmp_path / "labels.txt", b"n01440764\nn01440764\n")
    label = read_labels(tmp_path / "labels.txt")
    assert label("ILSVRC2012_val_00000002.JPEG") == "n01440764"
    for name in ("ILSVRC2012_val_00000003.JPEG", "ILSVRC2012_val_00000000.JPEG", "photo.JPEG"):
        with pytest.raises(DataError, match=name):
            label(name)


# --- tars


def test_unwanted_class_tars_are_not_read(tmp_path):
    """They are overwritten with garbage: whoever looked into one would fail."""
    root = tars(tmp_path, IMAGES)
    path = root / "ILSVRC2012_img_train.tar"
    with tarfile.open(path) as archive:
        parts = [(m.offset_data, m.size) for m in archive if m.name.removesuffix(".tar") in OTHERS]
    with open(path, "r+b") as file:
        for offset, size in parts:
            file.seek(offset)
            file.write(b"\xaa" * size)
    source = open_all(root, tmp_path)
    assert contents(source) == by_stem(WANTED)
    assert "damaged" in refusal(root, WNIDS + OTHERS)


def test_indexing_tars_reads_headers_alone(tmp_path, monkeypatch):
    """Images of 400 kB: what is read to find them must stay far below their size."""
    images = {key: content + bytes(400_000) for key, content in WANTED.items()}
    root = tars(tmp_path, images)
    total = sum(path.stat().st_size for path in root.glob("*.tar"))
    before = _bytes_read()
    recognition.open_source(root, WNIDS)
    assert _bytes_read() - before < total / 5, f"of {total} bytes {_bytes_read() - before} were read"


def _bytes_read():
    with open("/proc/self/io") as lines:
        return int(next(line for line in lines if line.startswith("rchar")).split()[1])


@pytest.mark.parametrize("missing", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"])
def test_a_missing_tar_is_named(tmp_path, missing):
    root = tars(tmp_path, IMAGES)
    (root / missing).unlink()
    assert f"has no {missing}" in refusal(root, WNIDS)


def test_missing_labels_say_what_to_give(tmp_path):
    message = refusal(tars(tmp_path, IMAGES, devkit=False), WNIDS)
    assert "ILSVRC2012_devkit_t12.tar.gz" in message and "--val_labels" in message


@pytest.mark.parametrize("name", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"])
def test_tars_cut_off_anywhere_are_refused(tmp_path, name):
    """At any place, even between two members, and whether headers or images are cut."""
    root = tars(tmp_path, WANTED)
    whole = (root / name).read_bytes()
    end = len(whole.rstrip(b"\0"))
    for size in (0, 100, 512, 700, end // 3, end // 2 // 512 * 512, end * 3 // 4, end - 1):
        (root / name).write_bytes(whole[:size])
        message = refusal(root, WNIDS)
        assert name in message and ("cut off" in message or "damaged" in message), f"{size}: {message}"


def test_a_cut_off_class_tar_is_refused(tmp_path):
    """The outer archive is whole; only an inner one ends too early, between two members."""
    root = tars(tmp_path, WANTED)
    classes = {wnid: {} for wnid in WNIDS}
    for (split, wnid, name), content in WANTED.items():
        if split == "train":
            classes[wnid][name] = content
    inner = {f"{wnid}.tar": tar_of(files) for wnid, files in classes.items()}
    first = inner[f"{WNIDS[0]}.tar"]
    with tarfile.open(fileobj=io.BytesIO(first)) as archive:
        second = archive.getmembers()[1].offset
    write(root / "ILSVRC2012_img_train.tar", tar_of(inner | {f"{WNIDS[0]}.tar": first[:second]}))
    message = refusal(root, WNIDS)
    assert f"{WNIDS[0]}.tar in " in message and "cut off" in message


def test_a_damaged_header_within_a_tar_is_no_end(tmp_path):
    root = tars(tmp_path, WANTED)
    path = root / "ILSVRC2012_img_val.tar"
    with tarfile.open(path) as archive:
        offset = archive.getmembers()[3].offset
    whole = bytearray(path.read_bytes())
    whole[offset : offset + 100] = b"\xaa" * 100
    path.write_bytes(bytes(whole))
    assert "damaged" in refusal(root, WNIDS)


# --- zips


def test_reading_that_fails_is_told_from_bad_images(tmp_path):
    source = recognition.open_source(tars(tmp_path, IMAGES), WNIDS)
    source.close()
    with pytest.raises(references.UnreadableError, match="Bad file descriptor"):
        source.read(source.references[0])

    class Archive:
        filename = "images.zip"

        def open(self, info):
            raise OSError(5, "Input/output error")

    with pytest.raises(references.UnreadableError, match="Input/output error"):
        folders.read_member(Archive(), zipfile.ZipInfo("x.JPEG"))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_zips_cut_off_are_refused(tmp_path, share):
    path = kaggle_zip(tmp_path / "images.zip", IMAGES)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    message = refusal(path, WNIDS)
    assert str(path) in message and "whole zip archive" in message


def test_a_damaged_member_is_named_when_it_is_read(tmp_path):
    path = kaggle_zip(tmp_path / "images.zip", WANTED)
    with zipfile.ZipFile(path) as archive:
        info = next(info for info in archive.infolist() if info.filename.endswith(".JPEG"))
    damaged = bytearray(path.read_bytes())
    middle = info.header_offset + 30 + len(info.filename) + info.compress_size // 2
    damaged[middle : middle + 9] = b"\xaa" * 9
    path.write_bytes(bytes(damaged))
    source = recognition.open_source(path, WNIDS)
    failed = []
    for reference in source.references:
        try:
            source.read(reference)
        except DataError as error:
            failed.append(str(error))
    assert len(failed) == 1 and info.filename in failed[0]


@pytest.mark.parametrize("bomb", ["claims much", "expands to much", "packed otherwise"])
def test_zip_members_that_expand_too_far_are_refused(tmp_path, monkeypatch, bomb):
    monkeypatch.setattr(references, "MAX_BYTES", 100_000)
    path = tmp_path / "images.zip"
    method = zipfile.ZIP_BZIP2 if bomb == "packed otherwise" else zipfile.ZIP_DEFLATED
    name = f"train.X1/{WNIDS[0]}/{WNIDS[0]}_1.JPEG"
    with zipfile.ZipFile(path, "w") as archive:
        for other, content in kaggle_paths(WANTED).items():
            archive.writestr(other, content)
        archive.writestr(name, bytes(50_000 if bomb == "packed otherwise" else 5_000_000), compress_type=method)
    if bomb == "expands to much":  # the directory says 1000 bytes
        data = path.read_bytes()
        place = data.rindex(b"PK\x01\x02", 0, data.rindex(name.encode()))
        path.write_bytes(data[: place + 24] + (1000).to_bytes(4, "little") + data[place + 28 :])
    source = recognition.open_source(path, WNIDS)
    [reference] = [r for r in source.references if r.name == f"{WNIDS[0]}_1.JPEG"]
    with pytest.raises(DataError, match=f"{WNIDS[0]}_1.JPEG"):
        source.read(reference)


# --- names that climb out

EVIL = ("../../evil.JPEG", "/tmp/stce_evil.JPEG", "..\\..\\evil.JPEG", "train.X1/n01440764/../../../evil.JPEG")


@pytest.mark.parametrize("form", ["tars", "zip"])
def test_members_that_point_outside_write_and_give_nothing(tmp_path, form):
    if form == "tars":
        root = tars(tmp_path / "data", WANTED)
        train = {
            name: content for (split, wnid, name), content in WANTED.items() if (split, wnid) == ("train", WNIDS[0])
        }
        inner = {f"{wnid}.tar": tar_of({f"{wnid}_1.JPEG": picture(3)}) for wnid in WNIDS[1:]}
        inner[f"{WNIDS[0]}.tar"] = tar_of(train | dict.fromkeys(EVIL, picture(9)))
        write(
            root / "ILSVRC2012_img_train.tar", tar_of(inner | {"../../n01440764.tar": tar_of({"x.JPEG": picture(9)})})
        )
    else:
        root = kaggle_zip(tmp_path / "data" / "images.zip", WANTED)
        with zipfile.ZipFile(root, "a") as archive:
            for name in EVIL:
                archive.writestr(name, picture(9))
    before = {path for path in tmp_path.rglob("*")}
    source = open_all(root, tmp_path)
    assert all(source.read(reference) != picture(9) for reference in source.references)
    assert source.passed_over.count >= len(EVIL), "what was passed over must be listed"
    assert {path for path in tmp_path.rglob("*")} == before and not os.path.exists("/tmp/stce_evil.JPEG")


# --- parquet


def words(*wnids):
    return class_lists.class_names(sorted(wnids))


@pytest.mark.parametrize(
    "options, rule",
    [
        ({}, "WordNet ids in the images' paths"),
        ({"paths": False, "names": sorted(WNIDS + OTHERS)}, "names in the shards' metadata"),
        ({"paths": False, "names": words(*WNIDS, *OTHERS)}, "words in the shards' metadata"),
        ({"paths": True, "names": ["wrong"] * 6}, "WordNet ids in the images' paths"),
    ],
)
def test_labels_of_parquet_are_resolved_and_the_rule_is_said(tmp_path, options, rule):
    source = open_all(parquet(tmp_path / "data", IMAGES, **options), tmp_path / "copy")
    assert rule in source.note
    found = sorted((r.split, r.class_id, source.read(r)) for r in source.references)
    assert found == sorted((split, wnid, content) for (split, wnid, _), content in WANTED.items())


@pytest.mark.parametrize("names", [None, ["a", "b", "c", "d", "e", "f"], ["tench", "crane"]])
def test_labels_without_a_meaning_are_refused(tmp_path, names):
    assert "does not tell which classes" in refusal(parquet(tmp_path, IMAGES, paths=False, names=names), WNIDS)


@pytest.mark.slow
def test_a_thousand_names_in_the_sorted_order_are_known_by_their_places(tmp_path):
    """Some are spelt otherwise."""
    names = [f"{name}!" if k in (5, 500) else name for k, name in enumerate(class_lists.class_names(_thousand()))]
    images = {("train", "n01440764", "a.JPEG"): picture(1), ("val", "n01440764", "b.JPEG"): picture(2)}
    source = recognition.open_source(parquet(tmp_path, images, paths=False, names=names, shards=1), ("n01440764",))
    assert "the 1000 classes, sorted" in source.note and len(source.references) == 2
    other = parquet(tmp_path / "other", images, paths=False, names=names[::-1], shards=1)
    assert "does not tell" in refusal(other, ("n01440764",))


def _thousand():
    return class_lists.load_class_ids("all")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_parquet_cut_off_is_refused(tmp_path, share):
    root = parquet(tmp_path, IMAGES)
    path = sorted((root / "data").glob("train*"))[1]
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    message = refusal(root, WNIDS)
    assert str(path) in message


@pytest.mark.parametrize("columns", [{"text": ["a"], "label": [0]}, {"image": [b"bytes"], "label": [0]}])
def test_parquet_of_something_else_is_refused(tmp_path, columns):
    for name in ("train-0", "validation-0"):
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    assert "columns" in refusal(tmp_path, WNIDS)


def test_parquet_without_rows_is_refused(tmp_path):
    for path in (parquet(tmp_path, IMAGES) / "data").iterdir():
        pq.write_table(pq.read_table(path).slice(0, 0), path)
    assert "hold no images" in refusal(tmp_path, None)


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda data: (data / "train-00001-of-00003.parquet").unlink(), "lacks 1 of 3 train shards: train-00001"),
        (lambda data: (data / "validation-00002-of-00003.parquet").unlink(), "validation-00002"),
        (lambda data: (data / "train-00002-of-00003.parquet").rename(data / "train-00002-of-00004.parquet"), "mixes"),
        (lambda data: (data / "train-00002-of-00003.parquet").rename(data / "train-more.parquet"), "mixes"),
        (lambda data: (data / "train-00002-of-00003.parquet").rename(data / "train-00003-of-00003.parquet"), "00002"),
    ],
)
def test_parquet_shards_that_are_missing_or_of_two_sets_are_refused(tmp_path, change, named):
    change(parquet(tmp_path, IMAGES, shards=3) / "data")
    assert named in refusal(tmp_path, WNIDS)


def test_parquet_files_that_name_their_labels_differently_are_refused(tmp_path):
    parquet(tmp_path / "one", IMAGES, paths=False, names=sorted(WNIDS + OTHERS))
    parquet(tmp_path / "two", IMAGES, paths=False, names=sorted(WNIDS + OTHERS)[::-1])
    for path in (tmp_path / "two" / "data").glob("validation*"):
        path.replace(tmp_path / "one" / "data" / path.name)
    assert "names its labels otherwise" in refusal(tmp_path / "one", WNIDS)


def test_shards_called_test_are_said_to_be_taken_for_val(tmp_path):
    for path in (parquet(tmp_path, IMAGES) / "data").glob("validation*"):
        path.rename(path.with_name(path.name.replace("validation", "test")))
    assert "test-* shards are taken for val" in recognition.open_source(tmp_path, WNIDS).note


def test_parquet_whose_groups_of_rows_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(recognition.parquet, "_MAX_BYTES", 1000)
    message = refusal(parquet(tmp_path, IMAGES), WNIDS)
    assert "train-00000-of-00002.parquet: a group of rows has" in message, "it should be told before all is copied"


def test_labels_that_are_hidden_are_refused(tmp_path):
    """As in the test split of ImageNet, where all are -1."""
    table = pq.read_table(parquet(tmp_path, IMAGES, shards=1) / "data" / "validation-00000-of-00001.parquet")
    hidden = table.set_column(1, "label", pa.array([-1] * len(table), pa.int64()))
    pq.write_table(hidden, tmp_path / "data" / "validation-00000-of-00001.parquet")
    message = refusal(tmp_path, WNIDS)
    assert "-1" in message and "validation-00000-of-00001.parquet" in message


def test_parquet_leaves_no_copy_behind(tmp_path):
    source = open_all(parquet(tmp_path / "data", IMAGES), tmp_path / "copy")
    assert list((tmp_path / "copy").iterdir()) == [], "the copy should be gone with the process, however that ends"
    assert len(contents(source)) == len(WANTED)


def test_folders_of_splits():
    assert folders.split_folders(["train", "val", "test"]) == {"train": ("train", False), "val": ("val", False)}
    assert set(folders.split_folders(["train.X1", "train.X12", "val.X", "Labels"])) == {
        "train.X1",
        "train.X12",
        "val.X",
    }
    assert folders.split_folders(["train", "valid"]) == {} and folders.split_folders(["training", "val"]) == {}
