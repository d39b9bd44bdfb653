"""A planned run keeps to its minutes on a machine that became faster or slower: by a clock of the test's own."""

import pytest
from helpers import SMALLEST_VIT, leaves
from hypothesis import given
from hypothesis import strategies as st

from stce_jax.training.pace import Pace
from stce_jax.training.plan import SLACK, Costs, apply, make_plan
from stce_jax.verbs import train as verb
from stce_jax.workdir import layout
from stce_jax.workdir.config import load_config

COSTS = Costs(3.0, 8.0, (0.1, 0.2, 0.4), first_epoch=2.0, first_evaluation=1.0, evaluation=1.0, after=2.0)
PER_EPOCH = 100.0
SMALLEST = (*SMALLEST_VIT, "--config.image_size=8", "--config.model.body.vit.depth=1", "--config.eval_every=0.25")


class Machine:
    """Simulates a run; `speed` is how many times as long as planned a step and an evaluation take."""

    def __init__(self, minutes, speed, costs=COSTS):
        self.now, self.speed, self.costs, self.changes = 1000.0, speed, costs, []
        self._pace = Pace(minutes, costs, steps_per_epoch=PER_EPOCH, began=self.now, clock=lambda: self.now)
        self._config = load_config("small_folder", [])
        plan = make_plan(minutes, costs, steps_per_epoch=PER_EPOCH, eval_every=1.0)
        self._config = apply(plan, self._config)

    def run(self):
        """Seconds from the run's beginning to its end."""
        costs, epoch, start = self.costs, 0.0, self.now
        self.now += costs.before + costs.compiling + costs.first_epoch + costs.first_evaluation
        while epoch < self._config.epochs:
            following = min(epoch + self._config.eval_every, self._config.epochs)
            while epoch < following - 1e-9:
                part = min(0.01, following - epoch)
                size = min(len(costs.steps) - 1, int(epoch / self._config.epochs * len(costs.steps)))
                self.now += self.speed * PER_EPOCH * part * costs.steps[size]
                epoch += part
            epoch = following
            self.now += self.speed * costs.evaluation
            if epoch < self._config.epochs and (config := self._pace.corrected(self._config, epoch)):
                self.changes.append(config.epochs)
                self._config = config
                self.now += costs.compiling + self.speed * costs.first_epoch
        self.now += costs.after
        return self.now - start


@given(st.floats(0.6, 1.6), st.integers(6, 60), st.sampled_from([(0.2,), COSTS.steps]))
def test_a_run_ends_within_a_tenth_of_its_minutes_at_any_speed(speed, minutes, steps):
    seconds = Machine(minutes, speed, COSTS._replace(steps=steps)).run()
    assert 0.9 <= seconds / (60 * minutes) <= 1.1, f"{seconds:.0f} s of {60 * minutes}, at {speed} of the time"


def test_a_run_that_keeps_to_its_plan_is_left_alone():
    machine = Machine(10, 1.0)
    assert 0.96 < machine.run() / 600 < 1.0 and not machine.changes
    machine = Machine(10, 0.97)
    assert machine.run() < 600 and not machine.changes, "what is left over is less than compiling costs"


def test_a_faster_machine_gives_more_epochs_and_a_slower_one_fewer():
    faster, slower = Machine(10, 0.8), Machine(10, 1.25)
    planned = faster._config.epochs
    assert faster.run() < 600 * (1 - SLACK) + 30 and slower.run() > 600 * (1 - SLACK) - 60
    assert faster.changes[0] > 1.1 * planned and slower.changes[0] < 0.9 * planned


def test_a_machine_that_stands_still_near_its_end_is_not_planned_again():
    machine = Machine(10, 1.0)
    pace, config = machine._pace, machine._config
    machine.now += 60
    assert pace.corrected(config, 1.0) is None
    machine.now += 430
    assert pace.corrected(config, 10.0) is None, "a fifth of the time is not left"


@pytest.mark.slow
@pytest.mark.usefixtures("no_picture")
def test_a_run_with_other_epochs_is_that_of_a_stop_and_the_new_config(monkeypatch, seen, data_dir, tmp_path, capsys):
    words = [*SMALLEST, "--config.epochs=1", f"--config.data_dir={data_dir}"]
    config = load_config("digits:patch", words)
    shorter = load_config("digits:patch", [*words, "--config.epochs=0.75"])

    class Once:
        def corrected(self, config, epoch):
            return shorter if config.epochs == 1 and epoch > 0.4 else None

    by_hand, by_itself = tmp_path / "by_hand", tmp_path / "by_itself"
    with seen.stopped_at(22):
        verb.train(config, by_hand)
    verb.train(shorter, by_hand, allow_config_change=True)
    monkeypatch.setattr(verb, "planned", lambda config, *rest: (config, Once()))
    final = verb.train(config, by_itself)
    assert "off its plan of 0 minutes: 0.75 epochs in place of 1" in capsys.readouterr().out
    steps = [sorted(int(each.name) for each in (run / "checkpoints").iterdir()) for run in (by_hand, by_itself)]
    assert steps[0][-1] == steps[1][-1] == 34, steps
    assert layout.read_config(by_itself) == shorter and 0 < final["top1"] < 1
    for one, other in zip(leaves(by_hand), leaves(by_itself), strict=True):
        assert (one == other).all(), "the run that changed on its way has other weights"
