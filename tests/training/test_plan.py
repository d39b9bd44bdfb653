"""The arithmetic of `--minutes`, and what of a plan a config keeps: on made-up times, nothing is timed."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stce_jax.configs import default
from stce_jax.errors import ConfigError
from stce_jax.training.assemble import build_model, load_config
from stce_jax.training.candidates import CANDIDATES
from stce_jax.training.plan import (
    EVALUATIONS,
    SCALED,
    SLACK,
    Costs,
    Plan,
    adopt,
    apply,
    check_options,
    chosen,
    distance,
    make_plan,
    parts,
    value_of,
    with_keys,
)
from stce_jax.training.sizes import check_model
from stce_jax.training.timetable import Timetable
from stce_jax.verbs import planning
from stce_jax.workdir import config as configuration

ROUND = Costs(
    before=14.0, compiling=6.0, steps=(0.1, 0.3), first_epoch=5.0, first_evaluation=2.0, evaluation=1.0, after=4.0
)
seconds = st.floats(0.0, 60.0)


def duration(plan, costs, steps_per_epoch):
    """Seconds of a run with a plan, part by part."""
    training = plan.epochs * steps_per_epoch * sum(costs.steps) / len(costs.steps)
    training += min(1.0, plan.epochs) * costs.first_epoch
    evaluations = costs.first_evaluation + math.ceil(round(plan.epochs / plan.eval_every, 9)) * costs.evaluation
    return costs.before + costs.compiling + training + evaluations + costs.after


def test_a_plan_by_hand():
    plan = make_plan(10.0, ROUND, steps_per_epoch=100.0, eval_every=1.0)
    # 582 s without the slack, 26 fixed, 5 for the first epoch; an epoch is 20 s, and 1 s each of 26 evaluations.
    assert plan.epochs == pytest.approx((582 - 26 - 5 - 26) / 20, rel=1e-3)
    assert plan.eval_every == pytest.approx(plan.epochs / 26, rel=1e-3)
    assert plan.seconds == pytest.approx(duration(plan, ROUND, 100.0))
    assert plan.seconds <= 582.0 + 1e-6


@given(
    st.floats(1.0, 1000.0), st.builds(Costs, seconds, seconds, st.tuples(st.floats(0.001, 5.0)), *[seconds] * 4),
    st.floats(1.0, 5000.0), st.floats(0.1, 10.0),
)  # fmt: skip
def test_a_plan_fills_its_minutes_and_never_more(minutes, costs, steps_per_epoch, eval_every):
    try:
        plan = make_plan(minutes, costs, steps_per_epoch=steps_per_epoch, eval_every=eval_every)
    except ConfigError:
        least = Plan(1.0 / steps_per_epoch, 1.0 / steps_per_epoch, 0.0)
        assert duration(least, costs, steps_per_epoch) > 0.9 * (1 - SLACK) * 60 * minutes - 2 * costs.evaluation
        return
    assert plan.epochs * steps_per_epoch >= 1.0
    assert 0.9 * (1 - SLACK) * 60 * minutes <= plan.seconds <= (1 - SLACK) * 60 * minutes + 1e-6
    evaluations = round(plan.epochs / plan.eval_every)
    assert plan.epochs / plan.eval_every == pytest.approx(evaluations, rel=2e-3), "the last part is shorter than others"
    assert evaluations == 1 or plan.eval_every >= eval_every


@given(st.floats(2.0, 40.0), st.floats(0.2, 20.0), st.integers(20, 100))
def test_no_evaluation_comes_just_before_the_last(epochs, eval_every, steps_per_epoch):
    epochs = float(f"{epochs:.4g}")
    count = parts(epochs, eval_every)
    timetable = Timetable(10 * steps_per_epoch, 10, epochs, distance(epochs, count))
    evaluated = [step for step in range(1, timetable.total + 1) if timetable.evaluates(step)]
    assert evaluated[-1] == timetable.total
    shortest = min(np.diff([0, *evaluated]))
    assert len(evaluated) <= count and shortest >= 0.9 * timetable.total / count - 2


def test_evaluations_take_a_tenth_at_most():
    slow = ROUND._replace(evaluation=100.0)
    plan = make_plan(60.0, slow, steps_per_epoch=100.0, eval_every=1.0)
    assert plan.eval_every >= 50.0 and 100.0 / (plan.eval_every * 20.0) <= EVALUATIONS


def test_minutes_that_are_too_few_are_refused_with_those_that_an_epoch_takes():
    with pytest.raises(ConfigError, match=r"config.minutes is 0.4, .* an epoch would end after 0\.\d+ minutes"):
        make_plan(0.4, ROUND, steps_per_epoch=100.0, eval_every=1.0)


def test_candidates_that_have_the_epochs_they_want():
    candidates = CANDIDATES["class_folders"]
    wanted = [candidate.epochs for candidate in candidates]
    assert wanted == sorted(wanted) and wanted[0] == 0
    assert chosen(candidates, [1.0, 0.5, 0.0]) == 0
    assert chosen(candidates, [1000.0, 700.0, 25.0]) == 1
    assert chosen(candidates, [1e6] * 3) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", CANDIDATES)
def test_candidates_can_be_trained_and_cost_more_and_more(name):
    costs, base = [], load_config("small_folder", [f"--config.plan={name}"])
    for candidate in CANDIDATES[name]:
        assert set(candidate.keys) == set(CANDIDATES[name][0].keys)
        config = with_keys(base, candidate.keys)
        load_config("small_folder", [])  # its own is as before
        from_json = configuration.from_json(configuration.to_json(config))
        assert [value_of(from_json, key) for key in candidate.keys] == [*candidate.keys.values()]
        model = build_model(config, 10)
        assert model.grid(config.image_size, config.image_size) == (8, 8)
        check_model(model, tuple(config.progressive_sizes))
        sides = tuple(config.progressive_sizes) or (config.image_size,)
        costs.append(sum(planning.count_model(model, side)["multiply_adds"] for side in sides) / len(sides))
    assert costs == sorted(costs)


def test_what_is_given_in_epochs_keeps_its_share():
    words = ["--config.augment.mixing_off_epochs=2", "--config.model.reduction.evit.shrink_epochs=5"]
    config = load_config("small_folder", words)
    changed = apply(Plan(40.0, 2.0, 1.0), config)
    assert (changed.epochs, changed.eval_every, changed.optimizer.warmup_epochs) == (40.0, 2.0, 2.0)
    assert changed.augment.mixing_off_epochs == 4.0 and changed.model.reduction.evit.shrink_epochs == 10.0
    assert changed.model.reduction.evit.shrink_start_epoch is None and config.epochs == 20.0
    same = {"epochs: 20.0 -> 40.0", "eval_every: 1.0 -> 2.0", "optimizer.warmup_epochs: 1.0 -> 2.0"}
    assert set(configuration.differences(config, changed)) == {*same, "augment.mixing_off_epochs: 2.0 -> 4.0"}


def test_keys_in_epochs_are_known():
    """A new key in epochs is to keep its share, too, or is named here as one that does not."""
    keys = {key for key in configuration.flatten(default.get_config()) if "epoch" in key}
    assert keys - set(SCALED) == {"epochs"}


def test_a_run_that_is_there_keeps_its_plan_and_other_keys_are_the_commands():
    words = ["--config.minutes=30", "--config.plan=class_folders"]
    fresh = load_config("small_folder", words)
    saved = apply(Plan(40.0, 2.0, 1.0), with_keys(fresh, CANDIDATES["class_folders"][1].keys))
    again = load_config("small_folder", [*words, "--config.seed=3"])
    assert configuration.differences(saved, adopt(again, saved)) == ["seed: 0 -> 3"]
    longer = load_config("small_folder", ["--config.minutes=60", "--config.plan=class_folders"])
    assert configuration.differences(saved, adopt(longer, saved)) == []
    other = load_config("small_folder", ["--config.minutes=30"])
    assert any(line.startswith("plan: ") for line in configuration.differences(saved, adopt(other, saved)))


@pytest.mark.parametrize("minutes, plan", [(0.05, ""), (-1, ""), (float("nan"), ""), (1e9, ""), (5, "none"), (5, 7)])
def test_values_that_cannot_work_are_refused(minutes, plan):
    with pytest.raises(ConfigError, match=r"config\.(minutes|plan) is "):
        check_options(minutes=minutes, plan=plan)
