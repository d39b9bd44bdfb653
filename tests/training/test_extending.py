"""Runs that get more epochs: a stretched schedule or a warm restart, what is said of both, and their rates."""

import math
import re
import shutil

import numpy as np
import pytest
from helpers import SMALLEST_VIT, leaves

from stce_jax.training.plan import Plan, apply
from stce_jax.verbs.train import train
from stce_jax.workdir.config import load_config
from stce_jax.workdir.metric_lines import read_metrics

pytestmark = pytest.mark.usefixtures("no_picture")
EPOCH = 1437 / 32  # steps
SMALLEST = (
    *SMALLEST_VIT,
    "--config.image_size=8",
    "--config.log_every=1",
    "--config.eval_every=0.5",
    "--config.model.body.vit.depth=1",
    "--config.optimizer.ema_decay=0.9",
    "--config.optimizer.learning_rate=1e-3",
)
RESTART = ("--config.optimizer.restart_epochs=0.6", "--config.optimizer.restart_learning_rate=5e-4")


@pytest.fixture(scope="module")
def command(stce_here, data_dir):
    """Trains by the command: (words..., workdir) -> the completed command."""

    def run(*words, workdir):
        return stce_here(
            "train", "--config=digits:patch", *SMALLEST, f"--data_dir={data_dir}", *words, f"--workdir={workdir}"
        )

    return run


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory):
    """A run of 0.6 epochs; tests only read it."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    done = command("--config.epochs=0.6", workdir=workdir)
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.fixture(scope="module")
def restarted(command, finished, tmp_path_factory):
    """(what is printed, the workdir) of that run, gone on to one epoch by a warm restart."""
    run = shutil.copytree(finished, tmp_path_factory.mktemp("runs") / "restarted")
    done = command("--config.epochs=1", *RESTART, "--allow_config_change", workdir=run)
    assert done.returncode == 0, done.stderr
    return done.stdout, run


def cosine(step, begin, end, peak, final=1e-5):
    return final + (peak - final) * (1 + math.cos(math.pi * (step - begin) / (end - begin))) / 2


def rates(workdir):
    """{step: learning rate} as logged."""
    return {line["step"]: line["learning_rate"] for line in read_metrics(workdir) if line["split"] == "train"}


WARMUP, FIRST, TOTAL = round(0.1 * EPOCH), round(0.6 * EPOCH), round(EPOCH)


@pytest.mark.slow
def test_a_stretched_schedule_is_said_with_the_rate_of_a_restart(command, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    done = command("--config.epochs=1", "--allow_config_change", workdir=run)
    stretched = cosine(FIRST, WARMUP, TOTAL, 1e-3)
    assert done.returncode == 0, done.stderr
    assert (
        f"continuing at epoch 0.60 of 1; the learning rate there is {stretched:.3g} by this config, it was 1e-05\n"
        "the schedule is stretched over 1 epochs; with a warm restart at epoch 0.6, "
        "--config.optimizer.restart_epochs=0.6, the rate would be 0.001\n"
    ) in done.stdout
    found = rates(run)
    for step in range(FIRST + 1, TOTAL + 1):  # a step has the rate of those before it
        assert found[step] == pytest.approx(cosine(step - 1, WARMUP, TOTAL, 1e-3), rel=1e-4), step


@pytest.mark.slow
def test_a_warm_restart_is_said_with_the_rate_of_a_stretched_schedule(restarted):
    text, run = restarted
    stretched = cosine(FIRST, WARMUP, TOTAL, 1e-3)
    assert (
        "continuing at epoch 0.60 of 1; the learning rate there is 0.0005 by this config, it was 1e-05\n"
        "the schedule starts anew at epoch 0.6; stretched over 1 epochs, without "
        f"--config.optimizer.restart_epochs=0.6, the rate would be {stretched:.3g}\n"
    ) in text
    found = rates(run)
    for step in range(WARMUP + 1, TOTAL + 1):
        own = (WARMUP, FIRST, 1e-3) if step <= FIRST else (FIRST, TOTAL, 5e-4)
        assert found[step] == pytest.approx(cosine(step - 1, *own), rel=1e-4), step


@pytest.mark.slow
def test_a_run_stopped_after_its_restart_resumes_to_the_same_bits(restarted, finished, seen, data_dir, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    config = load_config("digits:patch", [*SMALLEST, f"--config.data_dir={data_dir}", "--config.epochs=1", *RESTART])
    with seen.stopped_at(5):
        train(config, run, allow_config_change=True)
    train(config, run)
    for left, right in zip(leaves(run), leaves(restarted[1]), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.slow
def test_the_config_alone_says_the_restart(restarted, command, tmp_path):
    """A run that has it from the beginning ends with the same bits as one that was extended by it."""
    done = command("--config.epochs=1", *RESTART, workdir=tmp_path / "run")
    assert done.returncode == 0 and "continuing" not in done.stdout, done.stderr
    assert rates(tmp_path / "run") == pytest.approx(rates(restarted[1]), rel=1e-6)
    for left, right in zip(leaves(tmp_path / "run"), leaves(restarted[1]), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.slow
def test_a_finished_run_says_how_it_goes_on(finished, command):
    done = command("--config.epochs=0.6", workdir=finished)
    assert re.search(r"nothing to do; to go on, give more --config\.epochs with --allow_config_change\n$", done.stdout)


REFUSED = [
    (("restart_epochs=0.6", "schedule=constant"), "and the schedule is constant, which never falls; give ()"),
    (
        ("restart_epochs=0.6", "schedule=constant", "name=schedule_free_adamw", "ema_decay=0"),
        "and the schedule is constant, which never falls; give ()",
    ),
    (
        ("restart_epochs=1",),
        "they must lie between the warm-up's end, 0.1, and config.epochs, 1; give more --config.ep",
    ),
    (("restart_epochs=0.1,0.5",), "they must lie between the warm-up's end, 0.1, and config.epochs, 1"),
    (("restart_epochs=0.6,0.5",), "config.optimizer.restart_epochs is (0.6, 0.5); its epochs must rise"),
    (("restart_epochs=0",), "config.optimizer.restart_epochs is (0,); it must be at most 100 epochs above 0, or ()"),
    (("restart_learning_rate=-1",), "config.optimizer.restart_learning_rate is -1.0; it must be between 0 and"),
]


@pytest.mark.parametrize("options, message", REFUSED, ids=str)
def test_restarts_that_cannot_be_are_refused_in_one_line(command, tmp_path, options, message):
    words = [f"--config.optimizer.{option}" for option in options]
    done = command("--config.epochs=1", *words, workdir=tmp_path / "run")
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "run").exists()


def test_minutes_keep_the_place_of_a_restart():
    config = load_config("digits", ["--config.epochs=10", "--config.optimizer.restart_epochs=4,8"])
    planned = apply(Plan(25.0, 1.0, 60.0), config)
    assert planned.optimizer.restart_epochs == (10.0, 20.0) and planned.optimizer.warmup_epochs > 0
