"""Runs that meet batches without a finite loss, and losses that jump: whole runs in this process."""

import contextlib
import io
import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TINY

import stce_jax
from stce_jax.data import catalog
from stce_jax.errors import DivergedError, PreemptedError
from stce_jax.training import assemble as runs
from stce_jax.training import evaluation, loop
from stce_jax.verbs.train import train
from stce_jax.workdir import layout
from stce_jax.workdir.checkpoints import Checkpoints
from stce_jax.workdir.config import load_config
from stce_jax.workdir.metric_lines import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_picture")]  # each trains

# The evaluations, and with them the checkpoints, are after steps 45 and 90. Every image is shown as it is, so that a
# batch can be told by its pixels.
OPTIONS = (
    *[word for word in TINY[1:] if "depth" not in word and "embedding" not in word],
    "--config.model.body.vit.depth=1",
    "--config.model.embedding.conv.stem_widths=8,16",
    "--config.model.embedding.conv.stem_strides=2,2",
    "--config.augment.shift=0",
    "--config.augment.crop=center",
    "--config.augment.repeats=1",
)


def config_of(data_dir, *words):
    return load_config("digits:conv", [*OPTIONS, f"--config.data_dir={data_dir}", *words])


def poisoned(data_dir, steps, factor):
    """`build_augment` with the losses of these steps of the first order of images multiplied by a factor."""
    build, config = runs.build_augment, config_of(data_dir)
    with runs.train_batches(config, runs.open_dataset(config), 0) as batches:
        known = [int(next(batches)["image"].astype(np.int64).sum()) for _ in range(max(steps))]
    bad = jnp.array([known[step - 1] for step in steps])

    def build_poisoned(config, dataset, **options):
        augment = build(config, dataset, **options)

        def augment_poisoned(key, step, images, labels):
            changed, targets = augment(key, step, images, labels)
            return changed, jnp.where((images.astype(jnp.int32).sum() == bad).any(), factor, 1.0) * targets

        return augment_poisoned

    return build_poisoned


@pytest.fixture
def poison(monkeypatch, data_dir):
    """poison(steps, factor): the losses of these steps are multiplied by a factor, see `poisoned`."""
    return lambda steps, factor: monkeypatch.setattr(runs, "build_augment", poisoned(data_dir, steps, factor))


def test_a_batch_without_a_finite_loss_is_not_applied_but_written_down(poison, data_dir, tmp_path, capfd):
    poison([50], np.nan)
    train(config_of(data_dir), tmp_path)
    [record] = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert (record["step"], record["salt"], record["loss"]) == (50, 0, "nan")
    source = catalog.open_dataset("digits", data_dir).train
    by_name = {source.name(index): source[index]["label"] for index in range(len(source))}
    config = config_of(data_dir)
    with runs.train_batches(config, runs.open_dataset(config), 49 * 32) as batches:
        labels = next(batches)["label"].tolist()
    assert [by_name[name] for name in record["images"]] == labels, "these are not the batch's images"
    assert "stce: step 50 had no finite loss and gradient" in capfd.readouterr().err
    train_lines = [line for line in read_metrics(tmp_path) if line["split"] == "train"]
    assert {line["step"]: line["skipped"] for line in train_lines} == {20: 0, 40: 0, 45: 0, 60: 1, 80: 0, 90: 0}
    assert all(np.isfinite(line["loss"]) for line in train_lines)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(stce_jax.load_run(tmp_path).variables))


def final_state(workdir):
    checkpoints = Checkpoints(layout.checkpoints_in(workdir))
    step = checkpoints.find("last")
    return checkpoints.restore_meta(step), jax.tree.leaves(stce_jax.load_run(workdir).variables)


FIVE_IN_A_ROW = [50, 51, 52, 53, 54]


@pytest.fixture(scope="module")
def gone_back(data_dir, tmp_path_factory):
    """(workdir, lines of stderr) of an undisturbed run with five bad steps in a row."""
    workdir, errors = tmp_path_factory.mktemp("gone_back") / "run", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(errors):
        patch.setattr(runs, "build_augment", poisoned(data_dir, FIVE_IN_A_ROW, np.nan))
        train(config_of(data_dir), workdir)
    return workdir, errors.getvalue().splitlines()


def test_after_five_in_a_row_the_run_goes_back_and_on_with_other_images(gone_back, poison, data_dir, tmp_path, capfd):
    """That it is the same every time is tested with a stop, below."""
    undisturbed, errors = gone_back
    assert errors[-1] == (
        "stce: at step 54 5 steps in a row had no finite loss and gradient; went back to step 45, continuing with "
        "other images (1 of 3)"
    )
    lines = [(line["step"], line["split"]) for line in read_metrics(undisturbed)]
    assert len(lines) == len(set(lines)) and lines[-1] == (90, "eval"), lines
    meta, _ = final_state(undisturbed)
    assert meta["salt"] == 1 and meta["guard"]["skipped"] == 0
    records = [json.loads(line) for line in (undisturbed / "skipped.jsonl").read_text().splitlines()]
    assert [(record["salt"], record["step"]) for record in records] == [(0, step) for step in FIVE_IN_A_ROW]
    # The count stays with the run: it resumes with an order of images in which the bad batches do not come.
    workdir = shutil.copytree(undisturbed, tmp_path / "run")
    poison(FIVE_IN_A_ROW, np.nan)
    train(config_of(data_dir, "--config.epochs=2.2"), workdir, allow_config_change=True)
    assert final_state(workdir)[0]["salt"] == 1
    assert "continuing with another config: epochs: 2.0 -> 2.2" in capfd.readouterr().out


def test_a_loss_that_jumps_is_gone_back_from_if_the_config_says_so(poison, data_dir, tmp_path, capfd):
    """Once the guard has seen a hundred losses; before that, nobody knows what is normal."""
    words = ("--config.epochs=4", "--config.divergence.loss_spike=1.5")
    poison([140], 1000.0)
    train(config_of(data_dir, *words), tmp_path)
    assert "the median of the last 100 was " in capfd.readouterr().err
    assert final_state(tmp_path)[0]["salt"] == 1


def test_a_stop_before_the_divergence_does_not_change_where_the_run_goes_back_to(
    gone_back, poison, data_dir, tmp_path, monkeypatch
):
    """To the checkpoint after step 45, not to that which the stop made in the midst of the bad steps."""
    poison(FIVE_IN_A_ROW, np.nan)
    write, stopped = loop.log_skipped, []

    def write_and_stop(workdir, *, step, **record):
        write(workdir, step=step, **record)
        if step == 50 and not stopped:
            stopped.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "log_skipped", write_and_stop)
    with pytest.raises(PreemptedError):
        train(config_of(data_dir), tmp_path / "stopped")
    assert 45 < max(Checkpoints(layout.checkpoints_in(tmp_path / "stopped")).steps()) < 60
    train(config_of(data_dir), tmp_path / "stopped")
    leaves = [final_state(workdir)[1] for workdir in (gone_back[0], tmp_path / "stopped")]
    for left, right in zip(*leaves, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("limit", [0, 2])
def test_a_run_that_diverges_again_and_again_ends(poison, data_dir, tmp_path, monkeypatch, limit):
    """The batches after the first checkpoint are all bad, whatever the order of images."""
    build = runs.build_augment

    def build_poisoned(config, dataset, **options):
        augment = build(config, dataset, **options)

        def augment_poisoned(key, step, images, labels):
            images, targets = augment(key, step, images, labels)
            return images, jnp.where(step >= 60, jnp.nan, 1.0) * targets

        return augment_poisoned

    monkeypatch.setattr(runs, "build_augment", build_poisoned)
    with pytest.raises(DivergedError) as error:
        train(config_of(data_dir, f"--config.divergence.max_rollbacks={limit}"), tmp_path)
    assert error.value.exit_code == 5
    assert str(error.value).startswith(
        f"at step 65 5 steps in a row had no finite loss and gradient, after the run had gone back {limit} times; try a"
    )
    assert Checkpoints(layout.checkpoints_in(tmp_path)).find("last") == 45, "the last good checkpoint must stay"


def test_a_run_that_diverges_before_its_first_checkpoint_is_exit_5(stce, data_dir, tmp_path):
    words = ("--config.optimizer.learning_rate=1e30", "--config.epochs=0.5", "--config.log_every=5")
    done = stce("train", *TINY, *words, f"--workdir={tmp_path}", f"--data_dir={data_dir}")
    assert done.returncode == 5, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "5 steps in a row had no finite loss and gradient, before the first checkpoint; try a lower" in last
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


def test_an_evaluation_without_a_finite_loss_is_exit_5(data_dir, tmp_path, monkeypatch):
    """Running statistics may overflow though every step was fine."""
    monkeypatch.setattr(evaluation, "mean_metrics", lambda *_, **__: {"loss": np.inf, "top1": 0.0, "top5": 0.0})
    with pytest.raises(DivergedError, match="the evaluation's loss is not finite at step 45; try a lower"):
        train(config_of(data_dir), tmp_path)
    assert Checkpoints(layout.checkpoints_in(tmp_path)).steps() == []
