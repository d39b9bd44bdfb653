"""`stce predict`: exact probabilities in the order of the input, files of any name, and those that cannot be read."""

import csv
import dataclasses
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import run_cli
from PIL import Image
from scipy.special import softmax

import stce_jax
from stce_jax import paths
from stce_jax.commands import tables
from stce_jax.data.files import list_images
from stce_jax.errors import CheckpointError, ConfigError, DataError
from stce_jax.training import prediction
from stce_jax.verbs.predict import predict


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of readable images of several kinds and sizes, two folders deep, and of files that are none."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    (root / "b").mkdir()
    for number in range(9):
        pixels = random.integers(0, 256, (12 + 3 * number, 20, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / "b" / f"{number}.png")
    pixels = random.integers(0, 256, (24, 24)).astype(np.uint16)
    Image.fromarray(pixels * 257).save(root / "16bit.png")
    Image.fromarray(pixels.astype(np.uint8)).convert("CMYK").save(root / "cmyk.jpg")
    Image.fromarray(pixels.astype(np.uint8)).save(root / "grey.JPEG")
    (root / "b" / "notes.txt").write_text("no image, and not called so")
    (root / ".hidden.png").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def files(pictures):
    return [str(pictures / name) for name in ("16bit.png", *(f"b/{n}.png" for n in range(9)), "cmyk.jpg", "grey.JPEG")]


@pytest.fixture(scope="module")
def run(tiny_run):
    return stce_jax.load_run(tiny_run[0])


def expected_probabilities(run, files):
    inputs = np.stack([run.preprocess(file) for file in files])
    return softmax(np.asarray(jax.jit(lambda x: run.model.apply(run.variables, x, train=False))(inputs)), axis=1)


def check(records, expected, run, topk):
    for record, probabilities in zip(records, expected, strict=True):
        ranked = np.argsort(-probabilities)[:topk]
        assert [one["id"] for one in record["classes"]] == [run.class_ids[place] for place in ranked], record["name"]
        assert [one["name"] for one in record["classes"]] == [run.class_names[place] for place in ranked]
        found = [one["probability"] for one in record["classes"]]
        np.testing.assert_allclose(found, probabilities[ranked], rtol=1e-5, err_msg=record["name"])


@pytest.mark.slow
def test_probabilities_are_the_models_in_the_order_of_the_input(tiny_run, run, pictures, files):
    order = [files[10], str(pictures / "b"), files[0], files[10]]
    meant = [files[10], *files[1:10], files[0], files[10]]
    records = list(predict(order, tiny_run[0], topk=3, batch_size=8))
    assert [record["name"] for record in records] == meant
    check(records, expected_probabilities(run, meant), run, topk=3)


def test_a_folder_means_the_images_in_it_at_any_depth(pictures, files):
    assert list_images(pictures) == files
    assert list_images([str(pictures), files[3]]) == [*files, files[3]]
    named = str(pictures / "b" / "notes.txt")
    assert list_images([named]) == [named], "a file that is named is meant, whatever it is called"


@pytest.mark.slow
def test_the_model_is_compiled_for_one_shape(tiny_run, files, monkeypatch):
    shapes, make = [], prediction.make_predict_step

    def make_watched(*arguments, **options):
        step = make(*arguments, **options)
        return lambda variables, batch: (shapes.append(batch["image"].shape), step(variables, batch))[1]

    monkeypatch.setattr(prediction, "make_predict_step", make_watched)
    assert len(list(predict(files, tiny_run[0], batch_size=7))) == 12
    assert shapes == [(8, 16, 16, 3)] * 2, (
        "7 images are to be rounded up to what the devices can share, and the last filled up"
    )
    shapes.clear()
    list(predict(files[0], tiny_run[0], batch_size=64))
    assert shapes == [(2, 16, 16, 3)], "a single image needs no batch of 64"


def test_few_images_are_in_memory(run, files, monkeypatch):
    """Of a thousand files, none is read long before it is needed."""
    read = []
    monkeypatch.setattr(prediction, "_view", lambda path, **_: read.append(path))
    views = prediction._views(run.config, [*files, *range(1000)], ahead=5)
    for taken in range(1, 20):
        next(views)
        assert len(read) <= taken + 6, f"{len(read)} were read when {taken} were taken"
    views.close()


def parsed_table(text):
    """[[name, probability, class], ...] of each line below the head."""
    head, *lines = text.splitlines()
    start, end = head.index("probability"), head.index("class")
    rows, name = [], None
    for line in lines:
        name = line[:start].strip() or name
        rows.append([name, line[start:end].strip(), line[end:].strip()])
    return rows


@pytest.mark.slow
def test_table_json_and_csv_tell_the_same(tiny_run, run, files, tmp_path, capsys):
    words = (*files, f"--workdir={tiny_run[0]}", "--topk=3", "--batch_size=8")
    outputs = (f"--json={tmp_path}/a.json", f"--csv={tmp_path}/a.csv")
    code, out, error = run_cli(capsys, "predict", *words, *outputs)
    assert (code, error) == (0, "")
    records = json.loads((tmp_path / "a.json").read_text())
    check(records, expected_probabilities(run, files), run, topk=3)
    flat = [(record["name"], rank, one) for record in records for rank, one in enumerate(record["classes"], start=1)]
    head, *rows = csv.reader(io.StringIO((tmp_path / "a.csv").read_text()))
    assert head == ["name", "rank", "class_id", "class_name", "probability"]
    assert rows == [[name, str(rank), one["id"], one["name"], str(one["probability"])] for name, rank, one in flat]
    places = [paths.absolute(row[0]) for row in parsed_table(out)]
    assert places == [paths.absolute(name) for name, _, _ in flat]
    assert [row[1:] for row in parsed_table(out)] == [
        [f"{100 * one['probability']:.2f}%", one["name"]] for _, _, one in flat
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.json"], "something else was left"
    for option, name in (("--json=-", "a.json"), ("--csv=-", "a.csv")):
        code, out, error = run_cli(capsys, "predict", *words, option)
        assert (code, out, error) == (0, (tmp_path / name).read_text(), ""), f"{option} is not what the file has"


def test_all_classes_at_most(tiny_run, files):
    [record] = predict(files[:1], tiny_run[0], topk=99)
    assert sorted(one["id"] for one in record["classes"]) == list("0123456789")
    assert sum(one["probability"] for one in record["classes"]) == pytest.approx(1, abs=1e-9)


@pytest.mark.slow
def test_unreadable_files_are_named_and_the_rest_is_done(tiny_run, files, pictures, tmp_path, capsys):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no image")
    whole = (pictures / "b" / "8.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink(tmp_path / "gone", tmp_path / "link.png")
    (tmp_path / "whole.png").write_bytes(whole)
    words = (files[0], tmp_path, files[1], pictures / "b" / "notes.txt")
    code, out, error = run_cli(capsys, "predict", *words, f"--workdir={tiny_run[0]}", "--topk=1", "--csv=-")
    assert code == 3, error
    assert [row[0] for row in csv.reader(io.StringIO(out))] == ["name", files[0], f"{tmp_path}/whole.png", files[1]]
    passed_over, *named, last = error.splitlines()
    assert passed_over.startswith("stce: passed over 1 files: 1 no regular file") and "pipe.png" in passed_over
    assert [line.split(":")[1].split()[-1] for line in named] == [
        *(f"{tmp_path}/{name}" for name in ("cut.png", "empty.png", "link.png", "text.jpg")),
        f"{pictures}/b/notes.txt",
    ], error
    assert last == "stce: 5 of 8 images could not be read, see above; the others are done"
    with pytest.raises(DataError, match=r"cut\.png"):
        list(predict(tmp_path, tiny_run[0]))


def test_nothing_readable(tiny_run, tmp_path, capsys):
    (tmp_path / "text.jpg").write_text("no image")
    code, out, error = run_cli(capsys, "predict", tmp_path, f"--workdir={tiny_run[0]}", "--json=-")
    assert (code, out, error.count("\n")) == (3, "[]\n", 2), error


def test_refusals(tiny_run, files, tmp_path, capsys):
    """One line, the right exit code, nothing written."""
    (tmp_path / "folder").mkdir()
    cases = [
        ((tmp_path / "none.jpg",), 3, f"there is no {tmp_path}/none.jpg"),
        ((files[0], tmp_path / "folder"), 3, f"{tmp_path}/folder holds no image"),
        ((files[0], "--topk=0"), 2, "topk is 0; it must be a whole number between 1"),
        ((files[0], "--batch_size=0"), 2, "batch_size is 0; it must be a whole number between 1"),
        ((files[0], "--checkpoint=17"), 4, "there is no checkpoint '17'"),
        ((files[0], "--json=-", "--csv=-"), 2, "would mix"),
        ((files[0], f"--csv={tmp_path}/folder"), 2, "it is a directory"),
        ((files[0], f"--json={tmp_path}/none/a.json"), 2, "give another file"),
        ((), 2, "PATH"),
    ]
    for words, code, named in cases:
        found, out, error = run_cli(capsys, "predict", *words, f"--workdir={tiny_run[0]}")
        assert (found, out, error.count("\n")) == (code, "", 1) and named in error, f"{words}: {found} {out} {error}"
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"], "something was written"


@pytest.mark.slow
def test_weights_that_give_no_numbers(run, files, monkeypatch):
    broken = dataclasses.replace(run, variables=jax.tree.map(lambda x: x * np.nan, run.variables))
    monkeypatch.setattr("stce_jax.training.assemble.load_run", lambda *_, **__: broken)
    with pytest.raises(CheckpointError, match="no finite numbers"):
        list(predict(files, "any"))


NAMES = ("猫.png", "two words é.png", "a\nb\x1b[31m.png", 'comma, "quote".png', os.fsdecode(b"caf\xe9.png"))


def test_file_names_of_all_kinds(tiny_run, files, tmp_path, stce):
    """Through the command as users run it: escaped where they would break the table, to the byte in CSV and JSON."""
    whole = Path(files[1]).read_bytes()
    for name in NAMES:
        (tmp_path / name).write_bytes(whole)
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"")
    words = ("predict", ".", f"--workdir={tiny_run[0]}", "--topk=1")
    done = stce(*words, "--json=all.json", "--csv=all.csv", cwd=tmp_path)
    assert done.returncode == 3 and "\x1b" not in done.stdout + done.stderr, done.stderr
    assert r"stce: cannot decode ./caf\udce9.jpg" in done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 6 and {len(line.replace("猫", "xx")) for line in lines[1:]} == {len(lines[1])}, "not aligned"
    assert r"./a\nb\x1b[31m.png" in done.stdout
    expected = sorted(f"./{name}" for name in NAMES)
    assert sorted(record["name"] for record in json.loads((tmp_path / "all.json").read_text())) == expected
    with open(tmp_path / "all.csv", errors="surrogateescape", newline="") as table:
        assert sorted(row["name"] for row in csv.DictReader(table)) == expected


def test_a_terminal_of_another_encoding(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    lines = tables.aligned([["猫", "1"], ["long name", "22"]], right=(1,))
    assert lines == [r"\u732b      1", "long name  22"]
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert tables.aligned([["猫", "1"], ["cat", "2"]]) == ["猫   1", "cat  2"]


@pytest.mark.slow
def test_a_reader_that_has_gone(tiny_run, files):
    """As in `stce predict ... | head`: no complaint."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "stce_jax", "predict", *files, f"--workdir={tiny_run[0]}"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_output_to_what_is_no_file(tiny_run, files, tmp_path, capsys):
    """/dev/null stays what it is, a pipe gets the lines, a link keeps pointing to its file."""
    os.symlink(tmp_path / "file.csv", tmp_path / "link.csv")
    options = ("--csv=/dev/null", f"--json={tmp_path}/link.csv")
    assert run_cli(capsys, "predict", files[0], f"--workdir={tiny_run[0]}", *options)[0] == 0
    assert not os.path.isfile("/dev/null") and not os.path.exists("/dev/null.partial")
    assert os.path.islink(tmp_path / "link.csv") and json.loads((tmp_path / "file.csv").read_text())


def test_a_whole_file_or_none(tmp_path):
    target = tmp_path / "a.bin"
    paths.write_bytes(target, b"old")
    with pytest.raises(ValueError, match="half"), paths.whole_file(target) as file:
        file.write(b"new")
        raise ValueError("half")
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target], "something half written was left"
    with paths.whole_file(target) as file:
        file.write(b"new")
        assert target.read_bytes() == b"old", "it appeared before it was whole"
    assert target.read_bytes() == b"new" and list(tmp_path.iterdir()) == [target]


@pytest.mark.slow
def test_real_awkward_files(tiny_run, run, test_data, tmp_path):
    """CMYK, 16 bits, GIF and WebP called JPEG, one pixel, cut off, not there at all, as they came with ImageNet."""
    with zipfile.ZipFile(test_data / "data" / "imagenet_samples.zip") as archive:
        archive.extractall(tmp_path, [name for name in archive.namelist() if name.startswith("odd/")])
    failures = []
    records = list(predict(tmp_path / "odd", tiny_run[0], unreadable=failures.append))
    readable = list_images(tmp_path / "odd" / "decodable")
    assert [record["name"] for record in records] == readable and len(readable) == 48
    check(records, expected_probabilities(run, readable), run, topk=5)
    undecodable = list_images(tmp_path / "odd" / "undecodable")
    assert len(failures) == len(undecodable) == 8
    for path, failure in zip(undecodable, failures, strict=True):
        assert f"cannot decode {path}: " in str(failure)


def test_options_of_python_are_checked_at_once(tiny_run, files):
    """Not when the iterator is first used."""
    for options in ({"topk": 0}, {"batch_size": -1}):
        with pytest.raises(ConfigError):
            predict(files, tiny_run[0], **options)
    with pytest.raises(DataError):
        predict("/no/where", tiny_run[0])
