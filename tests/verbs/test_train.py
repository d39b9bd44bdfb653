"""The command line end to end: a tiny run, its workdir, resumption to the bit, and evaluation."""

import json
import re

import jax
import numpy as np
import pytest
from helpers import TINY

import stce_jax
from stce_jax.analysis.costs import count_model
from stce_jax.training.mesh import make_mesh
from stce_jax.workdir.metric_lines import read_metrics


def test_workdir_holds_what_is_documented(tiny_run):
    workdir, _ = tiny_run
    config = json.loads((workdir / "config.json").read_text())
    assert config["model"]["body"]["vit"]["width"] == 16 and config["optimizer"]["beta1"] == 0.9
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
            else {"affinity_entropy"}  # of super tokens
        )
        assert set(line) == {"step", "epoch", "split", "loss", "top1", "top5"} | extra
        assert 0 <= line["top1"] <= line["top5"] <= 1
        assert 0 <= line.get("data_wait", 0) <= 1
    assert lines[-1]["epoch"] == pytest.approx(2, abs=0.01)
    assert lines[-1]["loss"] < lines[3]["loss"], "the evaluation loss did not fall"


def test_output_is_plain_lines_without_a_terminal(tiny_run):
    _, output = tiny_run
    assert "\x1b" not in output and "\r" not in output
    lines = output.splitlines()
    place = lines.index("compiling the step")
    assert re.fullmatch(r"compiled the step in \d+\.\d s", lines[place + 1])
    first, second = lines[place + 2 : place + 4]
    assert re.fullmatch(r"step 1/90  epoch 0\.02  train  loss \d\.\d{3}  top-1 \d+\.\d%", first), "or it has a speed"
    assert second.startswith("step 20/90  epoch 0.4")
    assert "images/s  waiting " in second and "left" in output
    assert lines[-1].startswith("finished: top-1 ") and "  waited for data " in lines[-1]


def test_a_run_opens_with_what_it_is(tiny_run):
    workdir, output = tiny_run
    opening = dict(line.split(": ", 1) for line in output.partition("compiling")[0].splitlines())
    run = stce_jax.load_run(workdir)
    counted = count_model(run.model, 16)
    batch = run.config.batch_size
    devices = make_mesh().size
    assert opening["model"] == "vit_ti_stce: body vit, embedding stce, reduction none"
    assert opening["parameters"] == f"{counted['parameters']:,}"
    assert opening["multiply-adds"] == f"{counted['multiply_adds']:,} an image of 16 pixels"
    assert opening["data"].startswith("digits in ")
    assert opening["data"].endswith(": training on 1,437 images, evaluating on 360, 10 classes")
    assert opening["image size"] == "16 pixels"
    assert opening["batch"] == f"{batch} images, {batch // devices} on each device"
    assert opening["epochs"] == "2, 90 steps, an evaluation every 1"
    assert opening["optimizer"] == "adamw, learning rate 0.003, cosine after 0.5 epochs of warm-up, weight decay 0.05"
    assert opening["devices"] == f"{devices} of cpu" and opening["dtype"] == "float32"
    assert opening["workdir"].endswith("/tiny: metrics.jsonl, tensorboard")
    assert opening["start"] == "new weights, seed 0" and len(opening) == 12


@pytest.mark.slow
def test_a_finished_run_says_so_and_changes_nothing(tiny_run, stce_here, data_dir):
    workdir, _ = tiny_run
    before = (workdir / "metrics.jsonl").read_bytes()
    done = stce_here("train", *TINY, f"--workdir={workdir}", f"--data_dir={data_dir}")
    assert done.returncode == 0 and "already finished at step 90" in done.stdout
    assert (workdir / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_another_config_in_the_same_workdir_is_refused(tiny_run, stce_here, data_dir):
    workdir, _ = tiny_run
    before = sorted(path.name for path in workdir.rglob("*"))
    done = stce_here("train", *TINY, "--config.seed=1", f"--workdir={workdir}", f"--data_dir={data_dir}")
    assert done.returncode == 2
    assert "belongs to another config (seed: 0 -> 1)" in done.stderr
    assert sorted(path.name for path in workdir.rglob("*")) == before
