"""`stce evaluate`: the files it writes, other data of the same classes, several processes, and what it refuses."""

import csv
import io
import json
import os
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import run_cli, without_gloo
from PIL import Image

import stce_jax
from stce_jax.analysis import files, scores
from stce_jax.commands import tables
from stce_jax.commands.confusion import lines_of
from stce_jax.data.catalog import open_dataset
from stce_jax.errors import ConfigError, DataError
from stce_jax.verbs.evaluate import evaluate
from stce_jax.workdir.metric_lines import read_metrics

FILES = ["confusion.csv", "confusion.png", "evaluation.json", "predictions.npz", "reliability.png"]


@pytest.fixture(scope="module")
def written(tiny_run, tmp_path_factory):
    """(what `evaluate` returned, the directory it wrote) for the tiny run's last checkpoint."""
    output = tmp_path_factory.mktemp("evaluation") / "new" / "directory"
    return evaluate(tiny_run[0], output=str(output)), output


@pytest.fixture(scope="module")
def exported(data_dir, tiny_run, tmp_path_factory):
    """The digits' validation images as PNGs in class folders, without training images."""
    root = tmp_path_factory.mktemp("exported")
    source = open_dataset("digits", data_dir).val
    for index in range(len(source)):
        record = source[index]
        folder = root / "val" / str(record["label"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:04}.png").write_bytes(record["image"])
    return root


def own_logits(tiny_run, data_dir):
    """(logits, labels) of the validation images, by the public model alone."""
    run = stce_jax.load_run(tiny_run[0])
    source = open_dataset("digits", data_dir).val
    records = [source[index] for index in range(len(source))]
    images = np.stack([run.preprocess(record["image"]) for record in records])
    logits = jax.jit(lambda x: run.model.apply(run.variables, x, train=False))(images)
    return np.asarray(logits), np.array([record["label"] for record in records])


@pytest.mark.slow
def test_the_scores_are_those_logged_in_training(tiny_run, written):
    result, output = written
    logged = [line for line in read_metrics(tiny_run[0]) if line["split"] == "eval"][-1]
    saved = json.loads((output / "evaluation.json").read_text())
    for found in (result, saved):
        assert (found["step"], found["epoch"], found["images"]) == (90, logged["epoch"], 360)
        assert (found["top1"], found["top5"]) == pytest.approx((logged["top1"], logged["top5"]), abs=1e-7)
        assert found["loss"] == pytest.approx(logged["loss"], rel=1e-5)
        assert (found["split"], found["checkpoint"], found["ema"], found["dataset"]) == ("val", "last", False, "digits")
    assert saved == json.loads(json.dumps({name: value for name, value in result.items() if name != "confusion"}))


@pytest.mark.slow
def test_the_predictions_are_the_models(tiny_run, data_dir, written):
    _, output = written
    logits, labels = own_logits(tiny_run, data_dir)
    with np.load(output / "predictions.npz", allow_pickle=False) as saved:
        assert {name: saved[name].dtype.kind for name in saved.files} == {
            "labels": "i", "logits": "f", "names": "U", "class_ids": "U", "tta": "U"
        }  # fmt: skip
        assert saved["labels"].dtype == np.int32 and saved["logits"].dtype == np.float32
        np.testing.assert_array_equal(saved["labels"], labels)
        np.testing.assert_allclose(saved["logits"], logits, rtol=1e-5, atol=1e-5)
        assert saved["names"][7] == "image 7 of digits/1.0.0 val" and saved["class_ids"].tolist() == list("0123456789")


def test_the_tables_and_pictures_agree_with_the_predictions(written):
    result, output = written
    assert sorted(path.name for path in output.iterdir()) == FILES
    with np.load(output / "predictions.npz") as saved:
        again = scores.summary(scores.of_images(saved["logits"], saved["labels"]), 10)
    assert {name: again[name] for name in ("top1", "calibration_error", "reliability")} == {
        name: result[name] for name in ("top1", "calibration_error", "reliability")
    }
    assert list(result["per_class"].values()) == again["per_class"] and list(result["per_class"]) == list("0123456789")
    first, *rows = csv.reader(io.StringIO((output / "confusion.csv").read_text()))
    assert first == ["true \\ predicted", *"0123456789"] and [row[0] for row in rows] == list("0123456789")
    np.testing.assert_array_equal(np.array([row[1:] for row in rows], int), again["confusion"])
    for name in ("confusion.png", "reliability.png"):
        with Image.open(output / name) as picture:
            assert min(picture.size) > 300, f"{name} is too small to read"


@pytest.mark.slow
def test_class_folders_of_the_same_images_give_the_same_logits(tiny_run, exported, written, tmp_path):
    """The run's own mean and standard deviation count, not the other dataset's; train/ is not there."""
    result = evaluate(tiny_run[0], dataset="folder", data_dir=str(exported), output=str(tmp_path))
    assert result["top1"] == written[0]["top1"] and result["dataset"] == "folder"
    np.testing.assert_array_equal(result["confusion"], written[0]["confusion"])
    with np.load(tmp_path / "predictions.npz") as folder, np.load(written[1] / "predictions.npz") as own:
        places = [int(os.path.basename(name).removesuffix(".png")) for name in folder["names"]]
        assert sorted(places) == list(range(360))
        np.testing.assert_array_equal(folder["logits"], own["logits"][places])
        np.testing.assert_array_equal(folder["labels"], own["labels"][places])


@pytest.mark.slow
def test_the_training_images_can_be_evaluated(tiny_run):
    result = evaluate(tiny_run[0], 45, split="train", ema=True)
    assert (result["images"], result["split"], result["checkpoint"], result["ema"]) == (1437, "train", "45", True)


@pytest.mark.slow
def test_two_processes_write_what_one_does(tiny_run, data_dir, written, tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    command = [sys.executable, "-m", "stce_jax", "evaluate", f"--workdir={tiny_run[0]}", f"--output={tmp_path}"]
    environment = os.environ | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen(
            command, env=environment | {"JAX_PROCESS_ID": str(index), "JAX_NUM_CPU_DEVICES": "2"}, **options
        )
        for index in range(2)
    ]
    ended = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ended
    said = [without_gloo(output) for output, _ in ended]
    assert said[0][0].startswith("step 90  epoch 2.00  360 images") and said[1] == [], "the second process talks, too"
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    with np.load(tmp_path / "predictions.npz") as two, np.load(written[1] / "predictions.npz") as one:
        np.testing.assert_array_equal(two["names"], one["names"])
        np.testing.assert_array_equal(two["labels"], one["labels"])
        np.testing.assert_allclose(two["logits"], one["logits"], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_command_prints_tables(tiny_run, capsys, written, tmp_path):
    output = tmp_path / "evaluation"
    words = (f"--workdir={tiny_run[0]}", "--by=class", "--confusion", f"--output={output}")
    code, out, _ = run_cli(capsys, "evaluate", *words)
    result = written[0]
    lines = out.splitlines()
    assert code == 0 and lines[1] == f"calibration error {100 * result['calibration_error']:.2f}%, in 15 bins"
    rows = [line.split()[:3] for line in lines[lines.index("by class, the worst first") + 2 :][:10]]
    assert sorted(rows) == [
        [name, str(row["images"]), f"{100 * row['top1']:.2f}%"] for name, row in result["per_class"].items()
    ]
    shown = [float(row[2][:-1]) for row in rows]
    assert shown == sorted(shown), "the worst class is not the first"
    mean = np.mean([row["top1"] for row in result["per_class"].values()])
    assert f"balanced accuracy {100 * mean:.2f}%, the mean of these" in lines
    place = lines.index("confusion: true classes in rows, predicted ones in columns")
    matrix = [list(map(int, line.split()[1:])) for line in lines[place + 2 :][:10]]
    np.testing.assert_array_equal(matrix, result["confusion"])
    assert lines[-1].startswith(f"{output}: evaluation.json") and (output / "evaluation.json").exists()


@pytest.mark.slow
def test_accuracy_by_a_column_of_a_csv(tiny_run, exported, stce_here, tmp_path):
    """A group is the images that its rows name; what has no row or no image is counted; all is written beside."""
    names = sorted(str(path.relative_to(exported)) for path in exported.rglob("*.png"))
    rows = [f"{name},{'odd' if int(name[6:10]) % 2 else 'a very long name of a group ' * 3}" for name in names[5:]]
    (tmp_path / "groups.csv").write_text("\n".join(["path,parity", *rows, "val/0/no.png,odd"]) + "\n")
    by = f"{tmp_path}/groups.csv:parity"
    words = ("evaluate", f"--workdir={tiny_run[0]}", "--dataset=folder", f"--data_dir={exported}", f"--by={by}")
    done = stce_here(*words, f"--output={tmp_path}/out")
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out" / "predictions.npz") as saved:
        hits = dict(
            zip(map(os.path.basename, saved["names"]), saved["logits"].argmax(1) == saved["labels"], strict=True)
        )
    found = json.loads((tmp_path / "out" / "by.json").read_text())
    assert (found["by"], found["step"], found["tta"], found["split"]) == (by, 90, "", "val")
    assert (found["images_without_row"], found["rows_without_image"]) == (5, 1)
    for group in found["groups"]:
        own = [hits[row[6:14]] for row in rows if row.split(",")[1] == group["group"]]
        assert (group["images"], group["top1"]) == (len(own), pytest.approx(np.mean(own)))
    assert "by" not in json.loads((tmp_path / "out" / "evaluation.json").read_text())
    lines = done.stdout.splitlines()
    place = lines.index(f"by {by}, the worst first")
    assert lines[place + 4 : place + 6] == ["5 images have no row", "1 rows have no image"]
    assert max(map(len, lines[place + 1 : place + 4])) <= 80 and lines[-1].endswith("reliability.png, by.json")
    refused = stce_here("evaluate", f"--workdir={tiny_run[0]}", f"--by={by}", f"--output={tmp_path}/out")
    assert refused.returncode == 3 and refused.stderr.count("\n") == 1, "images of records have no paths"
    assert "is of one of the images" in refused.stderr and (tmp_path / "out" / "by.json").exists()
    assert stce_here(*words[:-1], f"--output={tmp_path}/out").returncode == 0
    assert not (tmp_path / "out" / "by.json").exists(), "groups of an earlier evaluation are left"


@pytest.mark.slow
def test_the_accuracy_of_each_class_was_asked_for_by_another_name(tiny_run, stce_here):
    old, new = (stce_here("evaluate", f"--workdir={tiny_run[0]}", word) for word in ("--per_class", "--by=class"))
    assert old.stdout == new.stdout and "by class, the worst first" in new.stdout


def test_many_classes_are_printed_as_their_most_frequent_confusions():
    confusion = np.diag(np.full(30, 50))
    confusion[3, 4], confusion[29, 0] = 7, 9
    lines = lines_of(confusion, [f"class {number}" for number in range(30)], 80)
    assert lines[1:] == ["true      predicted  images", "class 29  class 0         9", "class 3   class 4         7"]
    assert lines_of(np.diag(np.full(30, 50)), ["a"] * 30, 80) == ["confusion: no image was taken for another class"]


@pytest.mark.parametrize("count, largest", [(3, 9), (10, 1000), (13, 99), (20, 9), (20, 5000), (40, 7)])
def test_confusions_of_classes_with_long_names_fit_a_terminal(count, largest):
    """In full with the classes' numbers where that fits, else as pairs; every name can be told from the others."""
    confusion = np.random.default_rng(0).integers(1, largest + 1, (count, count))
    names = [f"{k} golden retriever, a dog of the kind {k}, 日本語の長い名前 \x1b[2J{k}" for k in range(count)]
    title, *lines = lines_of(confusion, names, 80)
    assert max(map(tables.width, lines)) <= 80 and all(line.isprintable() for line in lines)
    if title.startswith("confusion"):
        assert title.endswith("by their numbers") and lines[0].split() == [str(k) for k in range(count)]
        assert [list(map(int, line.split()[-count:])) for line in lines[1:]] == confusion.tolist()
        assert [int(line.split()[0]) for line in lines[1:]] == list(range(count))
    else:
        assert count * 4 > 60 and len(lines) == 21
    plain = lines_of(confusion[:3, :3], ["a", "b", "c"], 80)
    assert plain[1].split() == ["a", "b", "c"], "short names are replaced by numbers"


def test_scores_that_are_no_numbers_are_null(written, tmp_path):
    result = written[0] | {"loss": float("nan"), "calibration_error": float("nan")}
    files.write(tmp_path, result, ["a"], np.zeros(1, int), np.full((1, 10), np.nan, np.float32))

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    saved = json.loads((tmp_path / "evaluation.json").read_text(), parse_constant=refuse)
    assert saved["loss"] is saved["calibration_error"] is None and saved["top1"] == result["top1"]


def test_class_names_of_any_script_and_with_formulas_are_drawn(written, tmp_path):
    """matplotlib would take text between dollars for a formula, and end at this one."""
    names = ["$\\no^{$", "数字", "caf\udce9", *"3456789"]
    result = written[0] | {"class_names": names}
    files.write(tmp_path, result, ["a"], np.zeros(1, int), np.zeros((1, 10), np.float32))
    table = (tmp_path / "confusion.csv").read_bytes()
    assert "数字".encode() in table and b"caf\xe9" in table


@pytest.mark.slow
def test_a_failed_evaluation_leaves_none_that_looks_complete(tiny_run, exported, tmp_path):
    """The old evaluation.json goes before anything else is written: its presence means that all belongs together."""
    images, output = tmp_path / "images", tmp_path / "output"
    shutil.copytree(exported, images)
    evaluate(tiny_run[0], dataset="folder", data_dir=str(images), output=str(output))
    next((images / "val" / "9").iterdir()).write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot decode"):
        evaluate(tiny_run[0], dataset="folder", data_dir=str(images), output=str(output))
    assert sorted(path.name for path in output.iterdir()) == [name for name in FILES if name != "evaluation.json"]


@pytest.mark.slow
def test_refusals(tiny_run, exported, tmp_path, capsys):
    workdir = tiny_run[0]
    (tmp_path / "file").write_text("")
    folder = ("--dataset=folder", f"--data_dir={exported}")
    other = shutil.copytree(exported, tmp_path / "other")
    (other / "val" / "9").rename(other / "val" / "nine")
    cases = [
        (("--split=train", *folder), 3, "has no folder 'train'; it needs train/<class>/ with images"),
        (("--dataset=folder", f"--data_dir={other}"), 3, "the dataset's classes are not the run's: '9' differs"),
        (("--dataset=folder",), 2, "--data_dir=DIR"),
        (("--dataset=flowers",), 2, "there is no dataset 'flowers'"),
        (("--split=test",), 2, "--split"),
        (("--by=camera",), 2, "by is 'camera'; it must be class, or FILE.csv:COLUMN"),
        (("--tta=mirror",), 2, "tta is 'mirror'; it must be flip, crops, or flip,crops for both"),
        (("--by=none.csv:camera",), 3, "cannot read none.csv"),
        ((f"--output={tmp_path}/file/below",), 2, "give another --output"),
    ]
    for words, code, named in cases:
        found, out, error = run_cli(capsys, "evaluate", f"--workdir={workdir}", *words)
        assert (found, out, error.count("\n")) == (code, "", 1) and named in error, f"{words}: {found} {error}"
    with pytest.raises(ConfigError, match="no split 'test'"):
        evaluate(workdir, split="test")
