"""The paper's configs from `stce prepare` to a trained model, cut down to a few steps; pictures of their batches."""

import json
import shutil

import numpy as np
import pytest
from helpers import SMALL
from image_sources import THREE
from PIL import Image

import stce_jax
from stce_jax.data.catalog import open_dataset
from stce_jax.errors import ConfigError


@pytest.fixture(scope="module")
def trained(stce, imagenet, tmp_path_factory):
    """A run of the STCE's config, three steps an epoch."""
    workdir = tmp_path_factory.mktemp("runs") / "stce"
    done = train(stce, imagenet, "stce_vit_s", workdir)
    assert done.returncode == 0, done.stderr
    return workdir


# RandAugment, which takes the longest to compile, is in the run above.
FEWER = ("--config.augment.rand_augment=", "--config.model.dtype=bfloat16")


def train(stce, imagenet, config, workdir, *words):
    data_dir, classes = imagenet
    words = (*SMALL, f"--config.classes={classes}", f"--data_dir={data_dir}", *words)
    return stce("train", f"--config={config}", f"--workdir={workdir}", *words)


def test_the_run_knows_ids_names_and_fingerprint(trained):
    run = stce_jax.load_run(trained)
    assert run.step == 6 and run.class_ids == THREE
    assert run.class_names == ("goldfish, Carassius auratus", "cock", "goldfinch, Carduelis carduelis")
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 8 and all(np.isfinite(line["loss"]) for line in lines)


def test_a_run_needs_no_file_of_classes_once_the_data_are_prepared(stce_here, imagenet, trained, tmp_path):
    data_dir, classes = imagenet
    moved = classes.rename(tmp_path / "elsewhere.txt")
    try:
        done = stce_here("evaluate", f"--workdir={trained}")
        assert done.returncode == 0 and "9 images" in done.stdout, done.stderr
    finally:
        moved.rename(classes)
    assert open_dataset("imagenet100", data_dir, "three").class_ids == THREE
    with pytest.raises(ConfigError, match="cannot read the class list 'four'"):
        open_dataset("imagenet100", data_dir, "four")


def test_worker_processes_train_the_same_model(stce, imagenet, trained, tmp_path):
    done = train(stce, imagenet, "stce_vit_s", tmp_path / "run", "--config.loader_workers=2")
    assert done.returncode == 0, done.stderr
    losses = [
        [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        for workdir in (trained, tmp_path / "run")
    ]
    assert losses[0] == losses[1]


def test_going_on_with_other_images_is_refused(stce, stce_here, imagenet, trained, tmp_path):
    """The same classes, the same number of images; one image differs."""
    data_dir, classes = imagenet
    shutil.copytree(data_dir.parent / "tree", tmp_path / "tree")
    file = next((tmp_path / "tree" / "train").rglob("*_0.JPEG"))
    Image.new("RGB", (40, 50), "red").save(file)
    other = tmp_path / "data"
    done = stce_here(
        "prepare", "imagenet100", f"--source={tmp_path}/tree", f"--classes={classes}", f"--data_dir={other}"
    )
    assert done.returncode == 0, done.stderr
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")  # as if it had been stopped before the last epoch
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    done = train(stce_here, (other, classes), "stce_vit_s", tmp_path / "run")
    assert done.returncode == 3, done.stderr
    assert "the images are not those the run was trained on" in done.stderr and done.stderr.count("\n") == 1
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    done = train(stce, imagenet, "stce_vit_s", tmp_path / "run")
    assert done.returncode == 0 and "resuming from step 3" in done.stdout, done.stderr
