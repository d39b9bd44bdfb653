"""`stce train --minutes=M`: what is timed, said and written; by a clock of the test's own, and once by the real one."""

import dataclasses
import json
import time

import pytest
from helpers import TINY

from stce_jax.errors import ConfigError
from stce_jax.training import assemble as runs
from stce_jax.training.candidates import CANDIDATES
from stce_jax.training.plan import Costs
from stce_jax.training.rehearsal import Timing, between
from stce_jax.verbs import planning
from stce_jax.workdir import layout
from stce_jax.workdir.config import load_config

SMALLEST = (
    "--config=digits:patch",
    "--config.batch_size=32",
    "--config.image_size=16",
    "--config.model.body.vit.width=8",
    "--config.model.body.vit.depth=1",
    "--config.model.embedding.patch.patch_size=4",
)


class FakeClock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@dataclasses.dataclass
class FakeDataset:
    train: range
    class_names: tuple[str, ...] = ("a", "b")


@pytest.fixture
def timed(monkeypatch):
    """(a clock, the configs that were timed): a step takes as long as its model is large, timing ten seconds."""
    clock, seen = FakeClock(), []

    def multiply_adds(config, dataset):
        body, sides = config.model.body.vit, config.progressive_sizes or (config.image_size,)
        return [float(12 * body.depth * body.width**2 * (side // 4) ** 2) for side in sides]

    monkeypatch.setattr(planning, "_multiply_adds", multiply_adds)  # tracing models takes seconds

    def time_run(config, dataset, *, clock):
        clock.now += 10.0
        seen.append(config)
        steps = tuple(each / 1e9 for each in planning._multiply_adds(config, dataset))
        costs = Costs(2.0, 3.0, steps, 0.0, 0.0, 0.5, 1.0)
        return Timing(costs, 100.0, 90.0, 7)

    monkeypatch.setattr(planning, "time_run", time_run)
    return clock, seen


def plan(timed, workdir, minutes, *words, images=10_000, passed=3.0):
    config = load_config("small_folder", [f"--config.minutes={minutes}", *words])
    return planning.planned(config, workdir, FakeDataset(range(images)), passed, clock=timed[0])[0]


def test_without_minutes_nothing_is_timed(timed, tmp_path):
    config = load_config("small_folder", [])
    assert planning.planned(config, tmp_path, FakeDataset(range(9)), 0.0) == (config, None) and not timed[1]


def test_the_time_that_has_passed_counts(timed, tmp_path, capsys):
    config = plan(timed, tmp_path / "run", 30)
    (seen,) = timed[1]
    (step,) = (each / 1e9 for each in planning._multiply_adds(seen, FakeDataset(range(1))))
    left = 0.97 * 1800 - 3 - 10 - 5 - 0.5 - 1
    assert config.epochs == pytest.approx(left / (100 * step + 0.5 / config.eval_every), rel=0.01)
    assert config.optimizer.warmup_epochs == pytest.approx(config.epochs / 20, rel=1e-3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "planning 30 minutes: timing this machine"
    assert "timed vit_ti_stce at 32 pixels, input pipeline included: 7 steps of 100 images, 100 images/s" in lines[1]
    assert lines[2].startswith(f"plan: vit_ti_stce at 32 pixels, {config.epochs:g} epochs, an evaluation every ")
    assert "29.1 minutes after its start" in lines[2]


@pytest.mark.parametrize("minutes, place", [(1, 0), (10_000, 2)])
def test_a_list_of_candidates_is_chosen_from(timed, tmp_path, minutes, place):
    """The first one is timed, and the one that is taken; multiply-adds stand for the others."""
    config = plan(timed, tmp_path / "run", minutes, "--config.plan=class_folders")
    wanted = CANDIDATES["class_folders"][place]
    assert config.image_size == wanted.keys["image_size"] and config.epochs >= wanted.epochs
    assert config.model.body.vit.width == wanted.keys["model.body.vit.width"]
    assert len(timed[1]) == (2 if place else 1)


def test_a_candidate_that_is_slower_than_its_multiply_adds_is_left(timed, tmp_path, monkeypatch):
    known = planning.time_run

    def slow(config, dataset, *, clock):
        timing = known(config, dataset, clock=clock)
        if config.image_size == 64:
            timing = timing._replace(costs=timing.costs._replace(steps=(1e6,) * 3))
        return timing

    monkeypatch.setattr(planning, "time_run", slow)
    config = plan(timed, tmp_path / "run", 10_000, "--config.plan=class_folders")
    assert config.image_size == 32 and len(timed[1]) == 3, "the most expensive is timed, the next, then none is left"


def test_a_run_that_is_there_is_not_planned_again(timed, tmp_path, capsys):
    first = plan(timed, tmp_path / "run", 30)
    (tmp_path / "run").mkdir()
    layout.write_config(tmp_path / "run", first)
    assert plan(timed, tmp_path / "run", 30).to_dict() == first.to_dict()
    assert "keeping the plan of 30 minutes" in capsys.readouterr().out
    assert plan(timed, tmp_path / "run", 60).to_dict() == first.to_dict()
    assert "--minutes=60 is ignored: the run was planned for 30 minutes" in capsys.readouterr().out
    assert len(timed[1]) == 1
    layout.check_config(tmp_path / "run", plan(timed, tmp_path / "run", 30))  # is not refused


def test_minutes_and_epochs_are_not_given_both(stce_here, tmp_path):
    done = stce_here("train", *TINY, f"--workdir={tmp_path / 'run'}", "--minutes=1")
    assert done.returncode == 2 and "leave one of them out" in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


def test_less_than_a_pass_is_said(timed, tmp_path, capsys):
    config = plan(timed, tmp_path / "run", 1, images=10_000_000)
    assert config.epochs < 1 and "less than one pass" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="leaves no time for a step"):
        plan(timed, tmp_path / "run", 0.2)


@pytest.mark.slow
@pytest.mark.usefixtures("no_picture")
def test_a_run_of_so_many_minutes(stce_here, data_dir, tmp_path):
    """By the real clock, with wide bounds; and the same command resumes without planning again."""
    words = ("train", *SMALLEST, f"--workdir={tmp_path / 'run'}", f"--data_dir={data_dir}", "--minutes=0.75")
    start = time.monotonic()
    done = stce_here(*words)
    seconds = time.monotonic() - start
    assert done.returncode == 0, done.stderr
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["minutes"] == 0.75 and saved["epochs"] != 25.0 and f"{saved['epochs']:g} epochs" in done.stdout
    assert "vit_ti_patch at 16 pixels" in done.stdout and "finished: top-1 " in done.stdout
    assert 10 < seconds < 5 * 45, f"{seconds:.0f} s"
    done = stce_here(*words)
    assert done.returncode == 0 and "timed" not in done.stdout and "already finished" in done.stdout, done.stderr


def test_sizes_between_the_timed_ones_are_on_a_line_over_their_pixels():
    assert between((10, 20, 20, 30), {10: 1.0, 30: 5.0}) == pytest.approx((1.0, 2.5, 2.5, 5.0))
    assert between((32,), {32: 0.5}) == (0.5,) == between((32, 32), {32: 0.5})[:1]


@pytest.mark.slow
def test_a_rehearsal_leaves_nothing_and_knows_each_size(data_dir):
    name, *words = SMALLEST
    words += ["--config.progressive_sizes=8,16", "--config.optimizer.name=muon", "--config.optimizer.sam_rho=0.05"]
    words += ["--config.optimizer.ema_share=0.1", "--config.optimizer.ema_decay=0"]  # all that a run's step has
    config = load_config(name.partition("=")[2], [*words, f"--config.data_dir={data_dir}", "--config.minutes=0.5"])
    timing = planning.time_run(config, runs.open_dataset(config))
    assert len(timing.costs.steps) == 2 and min(timing.costs.steps) > 0 and timing.steps >= 9
    assert timing.costs.before > 0 and timing.costs.evaluation > 0
