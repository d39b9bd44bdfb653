"""The command line end to end: a tiny run, its workdir, resumption to the bit, and evaluation."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from helpers import TINY, leaves, wait_for
from PIL import Image

import stce_jax
from stce_jax.workdir.metrics import read_metrics

TOTAL = 90  # steps: 2 epochs of 1437 images in batches of 32


def test_workdir_holds_what_is_documented(tiny_run):
    workdir, _ = tiny_run
    config = json.loads((workdir / "config.json").read_text())
    assert config["model"]["width"] == 16 and config["optimizer"]["beta1"] == 0.9
    assert (workdir / "plots" / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert list(workdir.glob("events.out.tfevents.*")), "no TensorBoard events"
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"45", "90"}
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["split"]) for line in lines] == [
        *((step, "train") for step in (20, 40, 45)),
        (45, "eval"),
        *((step, "train") for step in (60, 80, 90)),
        (90, "eval"),
    ]
    for line in lines:
        extra = (
            {"learning_rate", "images_per_second", "data_wait", "gradient_norm", "skipped"}
            if line["split"] == "train"
            else set()
        )
        assert set(line) == {"step", "epoch", "split", "loss", "top1", "top5"} | extra
        assert 0 <= line["top1"] <= line["top5"] <= 1
        assert 0 <= line.get("data_wait", 0) <= 1
    assert lines[-1]["epoch"] == pytest.approx(2, abs=0.01)
    assert lines[-1]["loss"] < lines[3]["loss"], "the evaluation loss did not fall"


def test_output_is_plain_lines_without_a_terminal(tiny_run):
    _, output = tiny_run
    assert "\x1b" not in output and "\r" not in output
    first, *_, last = output.splitlines()
    assert first.startswith("step 20/90  epoch 0.4")
    assert "images/s  waiting " in first and "left" in output
    assert last.startswith("finished: top-1 ") and "  waited for data " in last


def test_a_finished_run_says_so_and_changes_nothing(tiny_run, stce_here, data_dir):
    workdir, _ = tiny_run
    before = (workdir / "metrics.jsonl").read_bytes()
    done = stce_here("train", *TINY, f"--workdir={workdir}", f"--data_dir={data_dir}")
    assert done.returncode == 0 and "already finished at step 90" in done.stdout
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_evaluate_reproduces_the_logged_accuracy(tiny_run, stce_here):
    workdir, _ = tiny_run
    logged = {line["step"]: line for line in read_metrics(workdir) if line["split"] == "eval"}
    best = max(logged.values(), key=lambda line: line["top1"])["step"]
    for checkpoint, step in (("last", 90), ("45", 45), ("best", best)):
        done = stce_here("evaluate", f"--workdir={workdir}", f"--checkpoint={checkpoint}")
        assert done.returncode == 0, done.stderr
        line = logged[step]
        assert f"step {step} " in done.stdout
        assert (
            f"360 images  loss {line['loss']:.4f}  top-1 {100 * line['top1']:.2f}%  top-5 {100 * line['top5']:.2f}%"
            in (done.stdout)
        ), done.stdout


def test_evaluate_the_moving_average(tiny_run, stce_here):
    workdir, _ = tiny_run
    raw, ema = (stce_here("evaluate", f"--workdir={workdir}", *flag) for flag in ((), ("--ema",)))
    assert ema.returncode == 0, ema.stderr
    assert ema.stdout != raw.stdout


def test_load_run_gives_a_usable_model(tiny_run, data_dir):
    from stce_jax.data.catalog import open_dataset

    workdir, _ = tiny_run
    run = stce_jax.load_run(workdir)
    assert run.class_names == tuple("0123456789") and run.step == 90 and run.config.seed == 0
    dataset = open_dataset("digits", data_dir)
    records = [dataset.val[index] for index in range(len(dataset.val))]
    images = np.stack([run.preprocess(record["image"]) for record in records])
    assert images.shape == (360, 16, 16, 3) and images.dtype == np.float32
    logits = jax.jit(lambda x: run.model.apply(run.variables, x, train=False))(images)
    labels = np.array([record["label"] for record in records])
    top1 = np.mean(labels == np.argmax(logits, axis=-1))
    logged = [line for line in read_metrics(workdir) if line["split"] == "eval"][-1]
    assert top1 == pytest.approx(logged["top1"], abs=1e-6)


def start(workdir, data_dir):
    command = [sys.executable, "-m", "stce_jax", "train", *TINY, f"--workdir={workdir}", f"--data_dir={data_dir}"]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("signal_number, code", [(signal.SIGTERM, 75), (signal.SIGINT, 75), (signal.SIGKILL, -9)])
def test_a_stopped_run_ends_bit_for_bit_where_the_undisturbed_one_does(
    tiny_process_run, stce, data_dir, tmp_path, signal_number, code
):
    """SIGTERM and SIGINT save where they strike; SIGKILL falls back to the last checkpoint."""
    process = start(tmp_path, data_dir)
    if signal_number == signal.SIGKILL:
        wait_for((tmp_path / "checkpoints" / "45").exists, "checkpoint 45")
    else:  # at once: the whole run takes less than a second
        wait_for(lambda: read_metrics(tmp_path), "line of metrics")
    process.send_signal(signal_number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    if code == 75:
        name = signal.Signals(signal_number).name
        assert errors.splitlines()[-1].startswith(f"stce: stopped by {name} at step "), errors
    done = stce("train", *TINY, f"--workdir={tmp_path}", f"--data_dir={data_dir}")
    assert done.returncode == 0, done.stderr
    assert "resuming from step " in done.stdout
    for expected, actual in zip(leaves(tiny_process_run[0]), leaves(tmp_path), strict=True):
        np.testing.assert_array_equal(actual, expected)
    lines = [(line["step"], line["split"]) for line in read_metrics(tmp_path)]
    assert len(lines) == len(set(lines)), f"a line stands twice: {lines}"
    undisturbed, resumed = (
        [{key: line[key] for key in ("step", "loss", "top1")} for line in read_metrics(run) if line["split"] == "eval"]
        for run in (tiny_process_run[0], tmp_path)
    )
    assert resumed == undisturbed


def stuck_folder(root):
    """Class folders of one good image each and one whose reading never ends, a pipe that nobody writes to."""
    for split in ("train", "val"):
        for name in "ab":
            (root / split / name).mkdir(parents=True)
            for number in range(8):
                Image.new("RGB", (16, 16), "red").save(root / split / name / f"{number}.png")
    os.remove(root / "train" / "b" / "7.png")
    os.mkfifo(root / "train" / "b" / "7.png")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("sigterm", [False, True])
def test_a_disk_that_does_not_answer_ends_the_run_with_its_state_saved(tmp_path, sigterm):
    """By itself after the timeout (3), or by SIGTERM while it waits (75)."""
    images, workdir = stuck_folder(tmp_path / "images"), tmp_path / "run"
    tiny = [word for word in TINY if "digits" not in word and "batch_size" not in word and "log_every" not in word]
    words = (f"--data_dir={images}", f"--workdir={workdir}", "--config.batch_size=1", "--config.log_every=1")
    words += ("--config.cache_megabytes=0", f"--config.loader_timeout={100 if sigterm else 2}")
    command = [sys.executable, "-m", "stce_jax", "train", "--config=small_folder", *tiny, *words]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    command += ["--config.seed=1", "--config.model.body.vit.heads=2"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if sigterm:
        wait_for(lambda: read_metrics(workdir), "line of metrics")
        time.sleep(3)
        process.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == (75 if sigterm else 3), errors
    named = "stce: stopped by SIGTERM" if sigterm else f"{images}/train/b/7.png has been read for "
    assert named in errors.splitlines()[-1], errors
    [saved] = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
    assert saved == read_metrics(workdir)[-1]["step"]


def test_another_config_in_the_same_workdir_is_refused(tiny_run, stce_here, data_dir):
    workdir, _ = tiny_run
    before = sorted(path.name for path in workdir.rglob("*"))
    done = stce_here("train", *TINY, "--config.seed=1", f"--workdir={workdir}", f"--data_dir={data_dir}")
    assert done.returncode == 2
    assert "belongs to another config (seed: 0 -> 1)" in done.stderr
    assert sorted(path.name for path in workdir.rglob("*")) == before


def test_class_folders_train_from_the_command_line(stce, test_data, tmp_path):
    import zipfile

    with zipfile.ZipFile(test_data / "data" / "small_real.zip") as archive:
        names = [name for name in archive.namelist() if name.startswith(("train/", "val/"))]
        per_class = {}
        for name in names:
            per_class.setdefault(name.rpartition("/")[0], []).append(name)
        archive.extractall(tmp_path / "images", [name for group in per_class.values() for name in sorted(group)[:20]])
    tiny = [word for word in TINY if "digits" not in word and "image_size" not in word]
    words = ("--config=small_folder", f"--data_dir={tmp_path}/images", f"--workdir={tmp_path}/run")
    done = stce("train", *tiny, *words, "--config.eval_batch_size=64", "--config.model.body.vit.heads=2")
    assert done.returncode == 0, done.stderr
    assert stce_jax.load_run(tmp_path / "run").class_names[:2] == ("airplane", "automobile")
    again = stce("evaluate", f"--workdir={tmp_path}/run")
    assert "200 images" in again.stdout, again.stderr
