"""Early stopping: what counts as better, a run that ends early, is resumed, called again, and goes on."""

import itertools
import json
import shutil

import numpy as np
import pytest
from helpers import SMALLEST_VIT, leaves

from stce_jax.training.patience import Patience, ran_out
from stce_jax.verbs.compare import compare
from stce_jax.verbs.train import train
from stce_jax.workdir import layout
from stce_jax.workdir.checkpoints import Checkpoints
from stce_jax.workdir.config import load_config
from stce_jax.workdir.metric_lines import read_metrics

pytestmark = pytest.mark.usefixtures("no_picture")
# A rate of 0: no evaluation is better than the first one, after 4 steps.
STILL = (
    *SMALLEST_VIT,
    "--config.epochs=5",
    "--config.eval_every=0.1",
    "--config.patience=3",
    "--config.image_size=8",
    "--config.log_every=50",
    "--config.model.body.vit.depth=1",
    "--config.optimizer.learning_rate=0",
    "--config.optimizer.warmup_learning_rate=0",
    "--config.optimizer.final_learning_rate=0",
)


def after(values, limit=2, metric="score", state=None):
    """The `Patience` after evaluations of these values."""
    patience = Patience(limit, metric, state)
    for number, value in enumerate(values, 1):
        patience.add(float(number), {"top1": 0.5, "loss": 0.5} | {"top1" if metric == "score" else metric: value})
    return patience


@pytest.mark.parametrize(
    "values, metric, waited",
    [
        ([0.1, 0.2, 0.3], "score", 0),
        ([0.3, 0.3, 0.2], "score", 2),  # as good is no better
        ([0.3, 0.2, 0.4, 0.4], "score", 1),
        ([0.3, 0.2, 0.4, 0.1], "loss", 0),
        ([0.3, None, 0.3], "loss", 2),
        ([None, None], "score", 2),
    ],
)
def test_evaluations_are_counted_since_the_best_one(values, metric, waited):
    patience = after(values, metric=metric)
    assert patience.state()["waited"] == waited and patience.ran_out == (waited >= 2)
    assert not after(values, limit=0, metric=metric).ran_out


def test_it_continues_from_a_state_of_the_same_metric_alone():
    values = np.random.default_rng(0).integers(0, 4, 12) / 4
    for cut in range(12):
        state = json.loads(json.dumps(after(values[:cut].tolist()).state()))
        again = Patience(2, "score", state)
        for number, value in enumerate(values[cut:].tolist(), cut + 1):
            again.add(float(number), {"top1": value})
        assert again.state() == after(values.tolist()).state()
    assert after([0.5, 0.4], metric="loss", state=after([0.9, 0.1, 0.1]).state()).state()["waited"] == 0


def test_why_a_run_ends_is_said():
    assert after([0.25, 0.2, 0.1]).reason() == "no better score in 2 evaluations than 25.00% at epoch 1.00"
    assert after([0.25, 1, 2], metric="loss").reason() == "no lower loss in 2 evaluations than 0.2500 at epoch 1.00"


@pytest.fixture(scope="module")
def ended(stce_here, data_dir, tmp_path_factory):
    """(the command's words, its output, the workdir) of a run that ends early; tests only read it."""
    workdir = tmp_path_factory.mktemp("runs") / "ended"
    words = ("train", "--config=digits:patch", *STILL, f"--data_dir={data_dir}")
    done = stce_here(*words, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return words, done.stdout, workdir


@pytest.mark.slow
def test_a_run_that_gets_no_better_ends_early_and_says_why(ended, stce_here):
    words, text, workdir = ended
    evaluations = [line for line in read_metrics(workdir) if line["split"] == "eval"]
    assert [line["step"] for line in evaluations] == [4, 9, 13, 18], "the fourth is the third that is no better"
    top1 = evaluations[0]["top1"]
    stopped, finished = text.splitlines()[-2:]
    reason = f"no better score in 3 evaluations than {top1:.2%} at epoch 0.09"
    assert stopped == f"stopped early at epoch 0.40 of 5: {reason}" and finished.startswith("finished: top-1 ")
    assert Checkpoints(layout.checkpoints_in(workdir)).find("last") == 18
    assert compare([workdir])["runs"][0]["finished"], "compare calls it unfinished"
    again = stce_here(*words, f"--workdir={workdir}")
    assert again.returncode == 0 and again.stdout == (
        f"already finished at step 18: top-1 {top1:.2%}; it stopped early, for {reason}; nothing to do; to go on, give "
        "--config.patience=0, or a larger one, with --allow_config_change\n"
    )


@pytest.mark.slow
def test_a_run_that_ended_early_goes_on_with_more_patience(ended, stce_here, tmp_path):
    """Its count goes on, too: two more evaluations, not five."""
    words, _, workdir = ended
    run = shutil.copytree(workdir, tmp_path / "run")
    done = stce_here(*words, "--config.patience=5", "--allow_config_change", f"--workdir={run}")
    assert done.returncode == 0 and "stopped early at epoch 0.60 of 5: no better score in 5" in done.stdout, done.stderr
    loss = (*words, "--config.patience=2", "--config.patience_metric=loss", "--config.epochs=1")
    done = stce_here(*loss, "--allow_config_change", f"--workdir={run}")
    assert "at epoch 0.89 of 1: no lower loss in 2 evaluations than" in done.stdout, (
        f"another metric begins anew: {done.stdout}"
    )


@pytest.mark.slow
def test_a_stopped_run_ends_where_an_undisturbed_one_does(ended, seen, data_dir, tmp_path):
    """Patience is counted from the checkpoint, not from what a process has seen."""
    config = load_config("digits:patch", [*STILL, f"--config.data_dir={data_dir}"])
    with seen.stopped_at(8):
        train(config, tmp_path)
    assert 0 < Checkpoints(layout.checkpoints_in(tmp_path)).find("last") < 18
    train(config, tmp_path)
    for left, right in zip(leaves(tmp_path), leaves(ended[2]), strict=True):
        np.testing.assert_array_equal(left, right)
    pairs = (read_metrics(tmp_path), read_metrics(ended[2]))
    own, others = ([(line["step"], line["loss"]) for line in lines if line["split"] == "eval"] for lines in pairs)
    assert own == others


def test_lines_of_metrics_tell_whether_a_run_ended_early():
    config = load_config("digits", ["--config.patience=2"])
    lines = [{"epoch": float(epoch), "top1": top1, "loss": 1.0} for epoch, top1 in enumerate([0.5, 0.4, 0.6, 0.6, 0.6])]
    assert [ran_out(config, list(itertools.islice(lines, count))) for count in range(6)] == [False] * 5 + [True]


def test_sweeps_compare_after_the_same_epochs(stce_here, tmp_path):
    words = ("reproduce", "table6", "--scale=smoke", f"--workdir={tmp_path / 'sweep'}", "--config.patience=3")
    done = stce_here(*words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "the runs of a sweep are compared after the same epochs; leave it out" in done.stderr
    assert not (tmp_path / "sweep").exists()
