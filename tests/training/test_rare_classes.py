"""Whole runs on classes of different sizes: weights and sampling, stopped, resumed, evaluated, refused."""

import json

import numpy as np
import pytest
from helpers import SMALLEST_VIT, leaves
from PIL import Image

from stce_jax.training import assemble as runs
from stce_jax.verbs.train import train
from stce_jax.workdir import layout
from stce_jax.workdir.checkpoints import Checkpoints
from stce_jax.workdir.metric_lines import read_metrics

pytestmark = pytest.mark.usefixtures("no_picture")
COUNTS = {"apple": 40, "pear": 8, "plum": 4}
STOP = 5


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Class folders of noise, brighter from class to class."""
    root, rng = tmp_path_factory.mktemp("rare"), np.random.default_rng(0)
    for split, share in (("train", 1), ("val", 0.5)):
        for place, (name, count) in enumerate(COUNTS.items()):
            (root / split / name).mkdir(parents=True)
            for number in range(int(share * count)):
                pixels = rng.integers(60 * place, 60 * place + 100, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    (root / "weights.csv").write_text("class_id,weight\napple,0.5\npear,2\nplum,4\n")
    return root


def words_of(images, *words):
    own = ("image_size=8", "epochs=2", "eval_every=1", "log_every=1", "model.body.vit.depth=1")
    own += (f"class_weights={images}/weights.csv", "sampling=balanced", *words)
    own += ("batch_size=8", f"data_dir={images}")
    return [*SMALLEST_VIT, *(f"--config.{word}" for word in own)]


@pytest.fixture(scope="module")
def finished(images, stce_here, tmp_path_factory):
    """(workdir, output) of a run by the command that nobody disturbed; tests only read it."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    done = stce_here("train", "--config=small_folder:patch", *words_of(images), f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


@pytest.mark.slow
def test_a_run_with_class_weights_and_sampling_resumes_to_the_bit(finished, images, seen, tmp_path):
    config = runs.load_config("small_folder:patch", words_of(images))
    with seen.stopped_at(STOP):
        train(config, tmp_path)
    del seen.labels[8 * Checkpoints(layout.checkpoints_in(tmp_path)).find("last") :]  # taken and not trained on
    train(config, tmp_path)
    counts = np.bincount(seen.labels, minlength=3)
    assert counts.sum() == 8 * round(2 * 52 / 8) and counts.max() - counts.min() <= 2, counts
    for expected, actual in zip(leaves(finished[0]), leaves(tmp_path), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_what_is_held_out_is_never_drawn_and_an_epoch_keeps_its_length(images, capsys):
    config = runs.load_config("small_folder:patch", words_of(images, "holdout=0.25"))
    dataset = runs.open_dataset(config)
    held = {dataset.val.name(place) for place in range(len(dataset.val))}
    assert len(held) == 10 + 2 + 1 and runs.build_timetable(config, dataset).images == 39
    names = [name for batch in range(24) for name in runs.batch_names(config, dataset, 8 * batch, 0)]
    assert not held & set(names) and len(set(names)) == 39
    counts = np.unique([name.split("/")[-2] for name in names], return_counts=True)
    assert dict(zip(*counts, strict=True)) == {"apple": 64, "pear": 64, "plum": 64}


@pytest.mark.slow
def test_weights_act_in_training_alone_and_evaluation_gives_both_accuracies(finished, images, stce_here, tmp_path):
    workdir = finished[0]
    done = stce_here("evaluate", f"--workdir={workdir}", f"--output={tmp_path}", "--by=class")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "evaluation.json").read_text())
    with np.load(tmp_path / "predictions.npz") as saved:
        logits, labels = saved["logits"].astype(np.float64), saved["labels"]
    own = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]
    logged = [line for line in read_metrics(workdir) if line["split"] == "eval"][-1]
    assert found["loss"] == pytest.approx(own.mean(), rel=1e-5) == pytest.approx(logged["loss"], rel=1e-5), "weighted"
    recalls = [(logits.argmax(axis=1) == labels)[labels == label].mean() for label in range(3)]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert f"balanced accuracy {100 * np.mean(recalls):.2f}%" in done.stdout
    meta = json.loads(next(layout.checkpoints_in(workdir).glob("*/meta.json")).read_text())
    assert meta["class_weights"] == [0.5, 2.0, 4.0]


@pytest.mark.slow
def test_a_file_of_weights_that_has_changed_is_refused_on_resuming(finished, images, stce_here):
    file = images / "weights.csv"
    before = file.read_text()
    try:
        file.write_text(before.replace("plum,4", "plum,5"))
        words = ("train", "--config=small_folder:patch", *words_of(images), f"--workdir={finished[0]}")
        refused = stce_here(*words)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
        said = f"the class weights in {file} are not those the run was trained with; put the file back"
        assert said in refused.stderr
        assert stce_here(*words, "--allow_config_change").returncode == 0
    finally:
        file.write_text(before)
