"""A run whose images have several labels, through the commands: trained, resumed, measured, used, and refused."""

import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from helpers import SMALLEST_VIT, leaves
from image_sources import picture
from PIL import Image
from sklearn.metrics import average_precision_score

from stce_jax.errors import PreemptedError
from stce_jax.training import assemble as runs
from stce_jax.training import loop
from stce_jax.verbs.compare import compare
from stce_jax.verbs.evaluate import evaluate
from stce_jax.verbs.show_data import caption
from stce_jax.verbs.train import train
from stce_jax.verbs.watch import watch
from stce_jax.workdir.checkpoints import Checkpoints
from stce_jax.workdir.layout import checkpoints_in
from stce_jax.workdir.metric_lines import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_picture")]
CLASSES = ("blue", "green", "red")
OPTIONS = ("task=multi_label", "image_size=8", "epochs=4", "eval_every=1", "log_every=3", "model.body.vit.depth=1")
OPTIONS += ("optimizer.learning_rate=0.02", "batch_size=8", "eval_batch_size=16", "augment.mixup=0.2")
OPTIONS += ("augment.rand_augment=", "augment.repeats=1")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Pictures in any folders; a label of theirs is a channel that is bright. Some have none."""
    root, rng = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    lines = ["path,labels"]
    for split, count in (("train", 40), ("val", 20)):
        for number in range(count):
            bright = rng.random(3) < 0.5
            name = f"{split}/{number % 2}/{number}.png" if number % 3 else f"{split}/{number}.png"
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 80, (8, 8, 3)) + 150 * bright[::-1]
            Image.fromarray(pixels.astype(np.uint8)).save(root / name)
            lines.append(f"{name},{';'.join(np.array(CLASSES)[bright])}")
    (root / "labels.csv").write_text("\n".join(lines))
    return root


def words_of(images, *words):
    return [*SMALLEST_VIT, *(f"--config.{word}" for word in (*OPTIONS, f"data_dir={images}", *words))]


@pytest.fixture(scope="module")
def finished(images, stce_here, tmp_path_factory):
    """(workdir, what training printed, the directory of its evaluation, what that printed); tests only read them."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    trained = stce_here("train", "--config=small_folder:patch", *words_of(images), f"--workdir={workdir}")
    assert trained.returncode == 0, trained.stderr
    output = workdir / "evaluation"
    evaluated = stce_here("evaluate", f"--workdir={workdir}", f"--output={output}", "--by=class")
    assert evaluated.returncode == 0, evaluated.stderr
    return workdir, trained.stdout, output, evaluated.stdout


def test_the_log_has_losses_and_average_precisions(finished):
    workdir, printed, *_ = finished
    lines = read_metrics(workdir)
    evaluations = [line for line in lines if line["split"] == "eval"]
    assert len(evaluations) == 4 and {*evaluations[0]} == {"step", "epoch", "split", "loss", "map"}
    assert not any({"top1", "top5", "map"} & {*line} for line in lines if line["split"] == "train")
    assert f"finished: mAP {100 * evaluations[-1]['map']:.2f}%  waited" in printed and "top-" not in printed
    assert f"eval   loss {evaluations[0]['loss']:.3f}  mAP {100 * evaluations[0]['map']:.2f}%\n" in printed
    assert evaluations[-1]["loss"] < evaluations[0]["loss"], "it learns nothing"
    assert max(line["map"] for line in evaluations) > 0.7


def test_the_evaluation_is_scikit_learns_and_the_logs(finished, images):
    workdir, _, output, printed = finished
    found = json.loads((output / "evaluation.json").read_text())
    assert sorted(path.name for path in output.iterdir()) == ["evaluation.json", "predictions.npz"]
    with np.load(output / "predictions.npz") as saved:
        labels, logits, names = saved["labels"], saved["logits"], saved["names"]
        assert saved["class_ids"].tolist() == list(CLASSES) and labels.dtype == np.int32 and labels.shape == (20, 3)
    table = {row["path"]: row["labels"] for row in csv.DictReader(io.StringIO((images / "labels.csv").read_text()))}
    for name, row in zip(names, labels, strict=True):
        assert ";".join(np.array(CLASSES)[row > 0]) == table[name.removeprefix(f"{images}/")], name
    each = [average_precision_score(labels[:, k], logits[:, k]) for k in range(3)]
    logged = [line for line in read_metrics(workdir) if line["split"] == "eval"][-1]
    assert found["map"] == pytest.approx(np.mean(each)) == pytest.approx(logged["map"], abs=1e-12)
    assert found["loss"] == pytest.approx(logged["loss"], rel=1e-5) and not {"top1", "confusion"} & {*found}
    assert [row["ap"] for row in found["per_class"].values()] == pytest.approx(each)
    assert [row["images"] for row in found["per_class"].values()] == labels.sum(axis=0).tolist()
    rows = [line.split() for line in printed.splitlines()[-4:-1]]
    assert rows == [
        [name, str(count), f"{100 * value:.2f}%"]
        for name, count, value in zip(CLASSES, labels.sum(axis=0), each, strict=True)
    ]


def test_the_best_checkpoint_has_the_best_average_precision(finished):
    workdir = finished[0]
    lines = {line["step"]: line["map"] for line in read_metrics(workdir) if line["split"] == "eval"}
    best = Checkpoints(checkpoints_in(workdir)).find("best")
    assert lines[best] == max(lines.values())


def test_a_stopped_run_ends_with_the_same_bits(finished, images, tmp_path, monkeypatch):
    config = runs.load_config("small_folder:patch", words_of(images))
    send = loop.to_devices
    monkeypatch.setattr(loop, "to_devices", lambda batches, sharding: send(stopping(batches), sharding))

    def stopping(batches, at=7):
        for number, batch in enumerate(batches, start=1):
            if number == at:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with pytest.raises(PreemptedError):
        train(config, tmp_path)
    monkeypatch.undo()
    train(config, tmp_path)
    for expected, actual in zip(leaves(finished[0]), leaves(tmp_path), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_two_processes_rank_all_images_together(images, stce_here, tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    words = ("train", "--config=small_folder:patch", *words_of(images, "epochs=1"), f"--workdir={tmp_path / 'run'}")
    joined = os.environ | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, "-m", "stce_jax", *words]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, env=joined | {"JAX_PROCESS_ID": index}, **options) for index in "01"]
    ended = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ended
    logged = read_metrics(tmp_path / "run")[-1]
    done = stce_here("evaluate", f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert logged["map"] == pytest.approx(found["map"], abs=1e-9), "of a part of the images, or of some twice"
    assert logged["loss"] == pytest.approx(found["loss"], rel=1e-5)


def test_predictions_are_the_labels_of_at_least_the_threshold(finished, images, stce_here, tmp_path):
    workdir, _, output, _ = finished
    done = stce_here("predict", images / "val", f"--workdir={workdir}", f"--json={tmp_path / 'found.json'}")
    assert done.returncode == 0, done.stderr
    found = {record["name"]: record["classes"] for record in json.loads((tmp_path / "found.json").read_text())}
    with np.load(output / "predictions.npz") as saved:
        chances = 1 / (1 + np.exp(-saved["logits"].astype(np.float64)))
        for name, row in zip(saved["names"], chances, strict=True):
            expected = {CLASSES[k]: row[k] for k in np.argsort(-row) if row[k] >= 0.5}
            assert {one["id"]: one["probability"] for one in found[name]} == pytest.approx(expected, abs=1e-5)
    none = stce_here("predict", images / "val" / "0.png", f"--workdir={workdir}", "--threshold=1")
    assert none.returncode == 0 and none.stdout.splitlines()[1].split() == [str(images / "val" / "0.png"), "-"]
    every = stce_here("predict", images / "val" / "0.png", f"--workdir={workdir}", "--threshold=0", "--topk=2")
    assert len(every.stdout.splitlines()) == 3
    assert stce_here("predict", images / "val" / "0.png", f"--workdir={workdir}", "--threshold=2").returncode == 2


def test_readers_of_runs_show_average_precision(finished, stce_here, tmp_path):
    workdir = finished[0]
    done = stce_here("compare", workdir, f"--output={tmp_path / 'curves.svg'}")
    assert done.returncode == 0 and "mAP, last" in done.stdout and "best mAP*" in done.stdout, done.stderr
    assert "top-1" not in done.stdout and "mAP (%)" in (tmp_path / "curves.svg").read_text()
    row = compare([workdir])["runs"][0]
    evaluations = [line["map"] for line in read_metrics(workdir) if line["split"] == "eval"]
    assert (row["map"], row["best_map"]) == (evaluations[-1], max(evaluations)) and "top1" not in row
    watch([workdir], tmp_path / "page.html", once=True)
    page = (tmp_path / "page.html").read_text()
    assert "mAP (%)" in page and f"{max(evaluations):.2%}" in page and "top-1" not in page


def test_a_picture_of_a_batch_says_what_its_shares_are(images, stce_here, tmp_path):
    words = words_of(images, "augment.label_smoothing=0.1")
    done = stce_here("show-data", "--config=small_folder:patch", *words, f"--output={tmp_path / 'batch.png'}")
    assert done.returncode == 0 and (tmp_path / "batch.png").exists(), done.stderr
    first, second, *_ = caption(runs.load_config("small_folder:patch", words), 3)
    assert "the first two of its labels" in first and "gives 5.00% to each of the 3 classes; so 95.0% is" in second


def test_an_export_says_that_probabilities_are_of_each_label(finished, stce_here, tmp_path):
    done = stce_here("export", f"--workdir={finished[0]}", f"--output={tmp_path / 'out'}", "--format=safetensors")
    assert done.returncode == 0, done.stderr
    output = json.loads((tmp_path / "out" / "model.json").read_text())["output"]
    assert output["meaning"].endswith("their sigmoid is the probability of each label by itself")


def test_what_is_of_one_label_an_image_is_refused_in_one_line(finished, tiny_run, images, stce_here, tmp_path):
    workdir, task = finished[0], "where images have one label each, and this run's config.task is multi_label; "
    training = ("train", "--config=small_folder:patch", f"--workdir={tmp_path / 'new'}")
    cases = [
        (("evaluate", f"--workdir={workdir}", "--confusion"), f"--confusion counts classes {task}leave it out"),
        (("probe", f"--workdir={workdir}"), f"{task}give --data_dir=DIR of others"),
        (
            ("export", f"--workdir={workdir}", f"--output={tmp_path / 'card'}", "--format=huggingface"),
            f"{task}take another format",
        ),
        ((*training, *words_of(images, "sampling=balanced")), "config.sampling is 'balanced', which is for one class"),
        ((*training, *words_of(images, "class_weights=balanced")), "config.class_weights is 'balanced', which is for"),
        ((*training, *words_of(images, "dataset=digits")), "config.dataset is 'digits'; with config.task multi_label"),
        (("compare", workdir, tiny_run[0]), "has config.task single_label, and"),
        (
            ("watch", workdir, tiny_run[0], f"--output={tmp_path / 'page.html'}", "--once"),
            "has config.task single_label",
        ),
    ]
    for words, said in cases:
        done = stce_here(*words)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr, f"{words}: {done.stderr}"
    assert not any((tmp_path / name).exists() for name in ("new", "card", "page.html"))


def test_the_labels_of_a_run_cannot_change(finished, images, stce_here, tmp_path):
    """Neither on resuming nor in what is measured: the classes must be the run's."""
    table = images / "labels.csv"
    before = table.read_text()
    try:
        table.write_text(before.replace("blue", "cyan"))
        again = ("train", "--config=small_folder:patch", *words_of(images), f"--workdir={finished[0]}")
        for words, said in (
            (again, "the images are not those the run was trained on"),
            (("evaluate", f"--workdir={finished[0]}"), "the dataset's classes are not the run's: 'blue' differs"),
        ):
            done = stce_here(*words)
            assert done.returncode == 3 and done.stderr.count("\n") == 1 and said in done.stderr, done.stderr
        (images / "train" / "new.png").write_bytes(picture(0, "PNG", (8, 8)))
        done = stce_here("evaluate", f"--workdir={finished[0]}", "--split=train")
        assert done.returncode == 3 and "'train/new.png' of" in done.stderr
    finally:
        (images / "train" / "new.png").unlink(missing_ok=True)
        table.write_text(before)


def test_several_views_give_one_average_precision_and_groups_of_files_none(finished, stce_here, tmp_path):
    workdir = finished[0]
    result = evaluate(workdir, tta="flip", by="class")
    assert result["tta"] == "flip" and 0 < result["map"] <= 1 and "by" not in result
    (tmp_path / "a.csv").write_text("index,camera\n0,left\n")
    done = stce_here("evaluate", f"--workdir={workdir}", f"--by={tmp_path}/a.csv:camera")
    assert done.returncode == 2 and "groups of a CSV file have a top-1" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and "--by=class" in done.stderr
