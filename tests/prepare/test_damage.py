"""Sources that are damaged or hostile: each is read or refused in one line, by no signal and without waiting."""

import contextlib
import io
import os
import re
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st
from image_sources import WANTED, WNIDS, kaggle_zip, parquet, tars, write

from stce_jax.data.class_lists import load_class_ids
from stce_jax.errors import ConfigError, DataError
from stce_jax.prepare.sources import references
from stce_jax.prepare.sources.matlab import read_structs
from stce_jax.prepare.sources.recognition import open_source
from stce_jax.prepare.sources.val_labels import read_labels


def contents(source):
    """{(split, class id, stem): bytes}"""
    return {(r.split, r.class_id, references.stem(r.name)): source.read(r) for r in source.references}


def by_stem(images):
    return {(split, wnid, Path(name).stem): content for (split, wnid, name), content in images.items()}


def refusal(path):
    with pytest.raises(DataError) as caught:
        open_source(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def meta(order="<", compress=True, ids=(1, 2), **more):
    """(a MAT-file as SciPy writes it, {number: WordNet id})."""
    synsets = np.zeros(
        (len(ids), 1), [("words", object), ("ILSVRC2012_ID", object), ("children", object), ("WNID", object)]
    )
    for row, number in enumerate(ids):
        synsets[row, 0] = (f"words, of {number}", number, np.arange(row + 3.0), WNIDS[row])
    stream = io.BytesIO()
    scipy.io.savemat(stream, {"other": np.eye(3), "synsets": synsets, "text": "x" * 50}, do_compression=compress)
    return stream.getvalue(), dict(zip(ids, WNIDS, strict=False))


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("ids", [(1, 2), (1.0, 2.0), (np.uint16(300), np.int64(70_000)), (np.uint8(1), np.float32(2))])
def test_matlab_files_are_read_as_scipy_reads_them(compress, ids):
    content, expected = meta(compress=compress, ids=ids)
    found = read_structs(content, "synsets", ("ILSVRC2012_ID", "WNID"))
    assert {int(number): wnid for number, wnid in found} == {int(number): wnid for number, wnid in expected.items()}
    loaded = scipy.io.loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
    assert [(row["ILSVRC2012_ID"], row["WNID"]) for row in loaded] == found


def test_matlab_files_of_the_other_byte_order_are_read():
    def element(kind, data):
        return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)

    def array(number_class, sizes, name, *rest):
        head = (
            element(6, struct.pack(">II", number_class, 0)) + element(5, struct.pack(">2i", *sizes)) + element(1, name)
        )
        return element(14, head + b"".join(rest))

    def small(kind, data):
        return struct.pack(">HH", len(data), kind) + data.ljust(4, b"\0")

    row = array(6, (1, 1), b"", small(3, struct.pack(">h", 7)))
    row += array(4, (1, 9), b"", element(4, "n01440764".encode("utf-16-be")))
    fields = small(5, struct.pack(">i", 4)) + element(1, b"ID\0\0WNID"[:4] + b"WNI\0")
    content = bytes(124) + b"\x01\x00MI" + array(2, (1, 1), b"synsets", fields, row)
    assert read_structs(content, "synsets", ("ID", "WNI")) == [(7, "n01440764")]


@pytest.mark.parametrize("compress", [True, False])
@given(
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    share=st.one_of(st.just(1.0), st.floats(0, 1)),
)
@settings(max_examples=300)
def test_damaged_matlab_files_are_read_or_refused_and_nothing_else(compress, changes, share):
    """SciPy's reader ends the process by a signal for some of these."""
    content = bytearray(meta(compress=compress)[0])
    for place, value in changes:
        content[int(place * len(content))] = value
    with contextlib.suppress(ValueError):
        read_structs(bytes(content[: int(share * len(content))]), "synsets", ("ILSVRC2012_ID", "WNID"))


@pytest.mark.parametrize(
    "change", ["count", "bomb", "v7.3", "no struct", "no field", "no variable", "text for a number", "no id"]
)
def test_matlab_files_that_claim_too_much_or_are_of_another_kind_are_refused(change, tmp_path):
    content, stream = bytearray(meta(compress=False)[0]), io.BytesIO()
    if change == "count":
        place = content.index(b"synsets") - 16
        content[place : place + 8] = struct.pack("<2i", 2**31 - 1, 2**31 - 1)
    elif change == "bomb":
        packed = zlib.compress(bytes(100 * 2**20))
        content = content[:128] + struct.pack("<II", 15, len(packed)) + packed
    elif change == "v7.3":
        content = b"\x89HDF\r\n\x1a\n" + bytes(600)
    elif change in ("no struct", "no variable"):
        scipy.io.savemat(stream, {"synsets" if change == "no struct" else "other": np.eye(2)})
    elif change in ("text for a number", "no id", "no field"):
        rows = np.zeros((1, 1), [("ILSVRC2012_ID", object), ("other" if change == "no field" else "WNID", object)])
        rows[0, 0] = ("one", WNIDS[0]) if change == "text for a number" else (1, "../../x")
        scipy.io.savemat(stream, {"synsets": rows})
    write(tmp_path / "meta.mat", bytes(stream.getvalue() or content))
    write(tmp_path / "ILSVRC2012_validation_ground_truth.txt", b"1\n")
    with pytest.raises(DataError, match=r"cannot read the devkit .*; get it again") as caught:
        read_labels(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("truth", [b"1\n3\n", b"one\n", b"1e400\n"])
def test_labels_that_the_devkit_does_not_explain_are_refused(tmp_path, truth):
    write(tmp_path / "meta.mat", meta()[0])
    write(tmp_path / "ILSVRC2012_validation_ground_truth.txt", truth)
    with pytest.raises(DataError, match="cannot read the devkit"):
        read_labels(tmp_path)


def test_zip_members_without_a_name_are_passed_over(tmp_path):
    path = kaggle_zip(tmp_path / "images.zip", WANTED)
    for name in ("", "/", "//", ".", "..", "\0"):
        with zipfile.ZipFile(path, "a") as archive:
            info = zipfile.ZipInfo("x")
            info.filename = name
            archive.writestr(info, b"")
    source = open_source(path)
    assert contents(source) == by_stem(WANTED)
    assert source.passed_over.reasons["without a name"] >= 1
    source.close()


@pytest.mark.parametrize("name", ["", "/", ".", "..", "n01440764.tar/"])
def test_tar_members_with_odd_names_are_passed_over(tmp_path, name):
    root = tars(tmp_path, WANTED)
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "a") as archive:
        archive.addfile(tarfile.TarInfo(name))
    source = open_source(root)
    assert contents(source) == by_stem(WANTED)
    source.close()


def test_links_in_a_tar_are_counted(tmp_path):
    root = tars(tmp_path, WANTED)
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "a") as archive:
        for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            member = tarfile.TarInfo("ILSVRC2012_val_00000099.JPEG")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    source = open_source(root)
    assert source.passed_over.reasons["no regular file"] == 4
    source.close()


@pytest.mark.parametrize("form", ["tars", "parquet", "zip", "labels", "labels in a folder", "classes"])
def test_a_pipe_in_the_place_of_a_file_is_refused_and_never_waited_for(tmp_path, form):
    def pipe(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        return path

    if form == "classes":
        for path in (pipe(tmp_path / "list.txt"), "/dev/zero", "/dev/tty"):
            with pytest.raises(ConfigError, match=r"no regular file|No such device"):
                load_class_ids(str(path))
        return
    if form in ("labels", "labels in a folder"):
        path = pipe(tmp_path / ("labels.txt" if form == "labels" else "kit/meta.mat"))
        with pytest.raises(DataError, match="no regular file"):
            read_labels(path if form == "labels" else path.parent)
        return
    root = {"tars": tars, "parquet": parquet}[form](tmp_path / "in", WANTED) if form != "zip" else tmp_path
    name = {"tars": "ILSVRC2012_img_val.tar", "zip": "in.zip"}.get(form)
    path = pipe(root / name if name else next((root / "data").glob("train-*")))
    assert re.search(
        "no regular file|has no ILSVRC2012_img_val|not recognised", refusal(path if form == "zip" else root)
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """{form: (path of the source, file of it to be damaged, its bytes)}"""
    root = tmp_path_factory.mktemp("whole")
    zipped = kaggle_zip(root / "images.zip", WANTED)
    made = {
        "zip": (zipped, zipped),
        "outer tar": (tars(root / "tars", WANTED), root / "tars" / "ILSVRC2012_img_train.tar"),
        "val tar": (tars(root / "val", WANTED), root / "val" / "ILSVRC2012_img_val.tar"),
        "devkit": (tars(root / "kit", WANTED), root / "kit" / "ILSVRC2012_devkit_t12.tar.gz"),
        "parquet": (parquet(root / "parquet", WANTED), root / "parquet" / "data" / "train-00000-of-00002.parquet"),
    }
    return {form: (path, file, file.read_bytes()) for form, (path, file) in made.items()}


@pytest.mark.parametrize("form", ["zip", "outer tar", "val tar", "devkit", "parquet"])
@given(
    places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=12),
    end=st.booleans(),
    share=st.one_of(st.just(1.0), st.floats(0, 1)),
)
@settings(max_examples=60)
def test_damaged_archives_are_read_or_refused_and_nothing_else(whole, form, places, end, share):
    """The directory of a zip and the schema of parquet lie at the end, headers of tars all over."""
    path, file, content = whole[form]
    damaged = bytearray(content)
    first = max(0, len(damaged) - 1500) if end else 0
    for place, value in places:
        damaged[first + int(place * (len(damaged) - first))] = value
    file.write_bytes(damaged[: int(share * len(damaged))])
    try:
        source = open_source(path, WNIDS)
        if source.stage:
            source.stage(file.parent, lambda done, total: None)
    except DataError as error:
        assert "\n" not in str(error)
        return
    for reference in source.references:
        with contextlib.suppress(DataError):
            source.read(reference)
    source.close()
