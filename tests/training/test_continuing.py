"""Runs that continue with another batch size, other epochs or another optimizer: no image is skipped or comes again."""

import contextlib
import io
import re
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SMALLEST_VIT, TINY, leaves

from stce_jax.data.order import image_index
from stce_jax.errors import DivergedError
from stce_jax.training import assemble as runs
from stce_jax.training.timetable import Origin, Timetable
from stce_jax.verbs.compare import compare
from stce_jax.verbs.train import train
from stce_jax.workdir import layout
from stce_jax.workdir.checkpoints import Checkpoints
from stce_jax.workdir.config import load_config
from stce_jax.workdir.metric_lines import read_metrics

pytestmark = pytest.mark.usefixtures("no_picture")
IMAGES = 1437  # of the digits
STOP = 5  # the step at which the first part of a run is stopped, long before its first evaluation
CLIP = "--config.optimizer.clip_norm=1"
CHANGE = ("--config.batch_size=64", "--config.epochs=0.5")
SMALLEST = (
    *SMALLEST_VIT,
    "--config.epochs=1",
    "--config.image_size=8",
    "--config.log_every=4",
    "--config.model.body.vit.depth=1",
    "--config.optimizer.ema_decay=0.9",
    "--config.augment.repeats=1",
)


def config_of(data_dir, *words):
    return load_config("digits:patch", [*SMALLEST, f"--config.data_dir={data_dir}", *words])


def stopped(seen, config, workdir, batches, **options):
    """Trains so many batches, until a signal."""
    with seen.stopped_at(batches):
        train(config, workdir, **options)
    return Checkpoints(layout.checkpoints_in(workdir)).find("last")


def labels_of_stream(config, count):
    source = runs.open_dataset(config).train
    order = {"count": IMAGES, "seed": config.seed, "salt": 0, "repeats": 1}
    return [int(source[image_index(position, **order)]["label"]) for position in range(count)]


@pytest.mark.slow
def test_a_run_that_goes_on_with_another_batch_takes_the_next_images(seen, data_dir, tmp_path, capfd):
    """Stopped between two evaluations, changed, and stopped once more: as one that was only changed."""
    first, config = config_of(data_dir), config_of(data_dir, *CHANGE)
    at = stopped(seen, first, tmp_path / "a", STOP)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    before = len(seen.labels[: 32 * at])
    del seen.labels[before:]  # a batch may have been taken and not trained on
    capfd.readouterr()
    train(config, tmp_path / "a", allow_config_change=True)
    total = at + round((IMAGES / 2 - 32 * at) / 64)
    output = capfd.readouterr().out
    assert f"resuming from step {at} of {total}" in output
    assert re.search(rf"continuing at epoch {32 * at / IMAGES:.2f} of 0\.5; the learning rate there is \S+ by", output)
    images = 32 * at + 64 * (total - at)
    assert seen.labels == labels_of_stream(config, images), "images are skipped, or come again"
    lines = read_metrics(tmp_path / "a")
    assert lines[-1]["step"] == total and lines[-1]["epoch"] == pytest.approx(images / IMAGES)
    epochs = [line["epoch"] for line in lines]
    assert epochs == sorted(epochs), epochs
    again = stopped(seen, config, tmp_path / "b", 3, allow_config_change=True)
    assert at < again < total
    train(config, tmp_path / "b")
    checkpoints = Checkpoints(layout.checkpoints_in(tmp_path / "b"))
    meta = checkpoints.restore_meta(checkpoints.find("last"))
    assert meta["origin"] == {"step": at, "images": 32 * at}
    for left, right in zip(leaves(tmp_path / "a"), leaves(tmp_path / "b"), strict=True):
        np.testing.assert_array_equal(left, right, err_msg="a stop after the change changes the run")


@pytest.mark.slow
def test_after_a_change_the_run_goes_back_to_where_it_was_changed(seen, data_dir, tmp_path, monkeypatch, capfd):
    """Not to an evaluation before that; and nothing that was saved until then is deleted."""
    at = stopped(seen, config_of(data_dir), tmp_path, STOP)
    build = runs.build_augment

    def build_poisoned(config, dataset, **options):
        augment = build(config, dataset, **options)

        def augment_poisoned(key, step, images, labels):
            images, targets = augment(key, step, images, labels)
            return images, jnp.where(step > at, jnp.nan, 1.0) * targets

        return augment_poisoned

    monkeypatch.setattr(runs, "build_augment", build_poisoned)
    words = (*CHANGE, "--config.divergence.max_rollbacks=1", "--config.divergence.max_skipped=2")
    with pytest.raises(DivergedError, match="after the run had gone back 1 times"):
        train(config_of(data_dir, *words), tmp_path, allow_config_change=True)
    assert f"went back to step {at}, continuing with other images (1 of 1)" in capfd.readouterr().err
    assert Checkpoints(layout.checkpoints_in(tmp_path)).steps() == [at]


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    """A run of one epoch."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    train(config_of(data_dir), workdir)
    return workdir


def changed(config, run):
    """What training prints that goes on with another config."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        train(config, run, allow_config_change=True)
    return output.getvalue()


@pytest.mark.slow
def test_a_finished_run_goes_on_to_more_epochs_and_says_how_the_learning_rate_jumps(finished, data_dir, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    output = changed(config_of(data_dir, "--config.epochs=1.2", "--config.batch_size=16", "--config.accumulate=2"), run)
    found = re.search(
        r"at epoch 1\.00 of 1\.2; the learning rate there is (\S+) by this config, it was (\S+)\n", output
    )
    now, then = map(float, found.groups())
    assert then == pytest.approx(1e-5, rel=0.01) and now > 2 * then, found[0]
    assert f"resuming from step 45 of {45 + round((1.2 * IMAGES - 45 * 32) / 16)}" in output
    lines = [line for line in read_metrics(run) if line["step"] > 45]
    assert then < lines[0]["learning_rate"] < now and lines[-1]["epoch"] == pytest.approx(1.2, abs=0.01)
    [row] = compare([run, finished])["runs"][:1]
    assert row["finished"], row


@pytest.mark.slow
def test_what_a_diverged_run_is_advised_can_be_done(finished, data_dir, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    with pytest.raises(DivergedError) as error:
        changed(config_of(data_dir, "--config.epochs=1.1", "--config.optimizer.learning_rate=1e37"), run)
    assert str(error.value).endswith(
        "; try a lower --config.optimizer.learning_rate, or --config.optimizer.clip_norm=1, with --allow_config_change"
    )
    before = leaves(run)
    for left, right in zip(before, leaves(finished), strict=True):
        np.testing.assert_array_equal(left, right)
    assert "clip_norm: 0.0 -> 1" in changed(config_of(data_dir, "--config.epochs=1.1", CLIP), run)
    assert "clip_norm: 1.0 -> 0.0" in changed(config_of(data_dir, "--config.epochs=1.2"), run)


def go_on(stce_here, run, data_dir, *words):
    return stce_here("train", *TINY, *words, f"--workdir={run}", f"--data_dir={data_dir}", "--allow_config_change")


def copied(tiny_run, tmp_path):
    return shutil.copytree(tiny_run[0], tmp_path / "run")


def test_with_fewer_epochs_than_are_over_a_run_is_refused(stce_here, tiny_run, data_dir, tmp_path):
    run = copied(tiny_run, tmp_path)
    done = go_on(stce_here, run, data_dir, "--config.epochs=1")
    assert done.returncode == 2
    assert done.stderr == (
        "stce: the run is at epoch 2.00 already, beyond config.epochs 1; give more --config.epochs, or another "
        "--workdir\n"
    )
    assert '"epochs": 2.0' in (run / "config.json").read_text(), "the workdir is the old config's still"
    done = go_on(stce_here, run, data_dir, "--config.batch_size=64")  # the last batch went beyond by a few images
    assert done.returncode == 0 and "already finished at step 90" in done.stdout, done.stderr


def test_other_weights_for_a_run_that_has_begun_are_refused(stce_here, tiny_run, data_dir, tmp_path):
    run = copied(tiny_run, tmp_path)
    done = go_on(stce_here, run, data_dir, f"--init_from={tiny_run[0]}")
    assert done.returncode == 2
    assert done.stderr == (
        f"stce: --init_from={tiny_run[0]} is for new runs, and this one is at step 90; give another --workdir, or "
        "leave it out\n"
    )


def test_an_average_that_the_run_did_not_keep_is_refused_by_its_option(stce_here, tiny_run, data_dir, tmp_path):
    run = copied(tiny_run, tmp_path)
    [checkpoint] = [path for path in (run / "checkpoints").iterdir() if path.name == "90"]
    shutil.rmtree(checkpoint / "ema")
    sums = checkpoint / "SHA256SUMS"
    sums.write_text("".join(line for line in sums.read_text().splitlines(True) if "  ema/" not in line))
    done = go_on(stce_here, run, data_dir, "--config.epochs=2.1")
    assert done.returncode == 4 and "--config.optimizer.ema_share=0, or begin a new run" in done.stderr, done.stderr


def test_a_checkpoint_of_version_0_1_has_its_position_by_its_batch_size():
    meta = {"config": {"batch_size": 32, "epochs": 3.0, "eval_every": 1.0}}
    dataset = types.SimpleNamespace(train=range(IMAGES))
    table = runs.saved_timetable(meta, dataset)
    assert table == Timetable(IMAGES, 32, 3.0, 1.0) and table.position(135) == 135 * 32
    meta["origin"] = {"step": 90, "images": 1440}
    assert runs.saved_timetable(meta, dataset).origin == Origin(90, 1440)


def test_the_tests_know_how_many_images_there_are(data_dir):
    assert len(runs.open_dataset(config_of(data_dir)).train) == IMAGES and jax.process_count() == 1
