"""`stce train` in processes of its own: stopped, stuck, and with images in class folders."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import TINY, leaves, wait_for
from PIL import Image

import stce_jax
from stce_jax.workdir.metric_lines import read_metrics


def start(workdir, data_dir):
    command = [sys.executable, "-m", "stce_jax", "train", *TINY, f"--workdir={workdir}", f"--data_dir={data_dir}"]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# SIGINT and SIGKILL: test_resume.py.
def test_a_stopped_run_ends_bit_for_bit_where_the_undisturbed_one_does(tiny_process_run, stce, data_dir, tmp_path):
    """SIGTERM saves where it strikes."""
    process = start(tmp_path, data_dir)
    wait_for(lambda: read_metrics(tmp_path), "line of metrics")  # then at once: the whole run takes less than a second
    process.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert errors.splitlines()[-1].startswith("stce: stopped by SIGTERM at step "), errors
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


# The command, where reading one of the images of `stuck_folder` never ends.
STUCK = """
import threading
from stce_jax.data import records
read = records.read_regular
def stuck(path, limit):
    if path.endswith("/b/7.png") and "/train/" in path:
        threading.Event().wait()
    return read(path, limit)
records.read_regular = stuck
from stce_jax.cli import main
main()
"""


def stuck_folder(root):
    """Class folders of eight good images each."""
    for split in ("train", "val"):
        for name in "ab":
            (root / split / name).mkdir(parents=True)
            for number in range(8):
                Image.new("RGB", (16, 16), "red").save(root / split / name / f"{number}.png")
    return root


@pytest.mark.parametrize("sigterm", [False, True])
def test_a_disk_that_does_not_answer_ends_the_run_with_its_state_saved(tmp_path, sigterm):
    """By itself after the timeout (3), or by SIGTERM while it waits (75)."""
    images, workdir = stuck_folder(tmp_path / "images"), tmp_path / "run"
    tiny = [word for word in TINY if "digits" not in word and "batch_size" not in word and "log_every" not in word]
    words = (f"--data_dir={images}", f"--workdir={workdir}", "--config.batch_size=1", "--config.log_every=1")
    words += ("--config.cache_megabytes=0", f"--config.loader_timeout={100 if sigterm else 2}")
    command = [sys.executable, "-c", STUCK, "train", "--config=small_folder", *tiny, *words]
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


def test_class_folders_train_from_the_command_line(stce_here, test_data, tmp_path):
    import zipfile

    with zipfile.ZipFile(test_data / "data" / "small_real.zip") as archive:
        names = [name for name in archive.namelist() if name.startswith(("train/", "val/"))]
        per_class = {}
        for name in names:
            per_class.setdefault(name.rpartition("/")[0], []).append(name)
        archive.extractall(tmp_path / "images", [name for group in per_class.values() for name in sorted(group)[:20]])
    tiny = [word for word in TINY if "digits" not in word and "image_size" not in word]
    words = ("--config=small_folder", f"--data_dir={tmp_path}/images", f"--workdir={tmp_path}/run")
    done = stce_here("train", *tiny, *words, "--config.eval_batch_size=64", "--config.model.body.vit.heads=2")
    assert done.returncode == 0, done.stderr
    assert stce_jax.load_run(tmp_path / "run").class_names[:2] == ("airplane", "automobile")
    again = stce_here("evaluate", f"--workdir={tmp_path}/run")
    assert "200 images" in again.stdout, again.stderr
