"""When a run counts as diverged."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stce_jax.training.guard import REMEMBERED, DivergenceGuard


def guard(max_skipped=3, loss_spike=0.0, state=None):
    return DivergenceGuard(max_skipped=max_skipped, loss_spike=loss_spike, state=state)


def test_diverged_after_max_skipped_steps_in_a_row_and_no_fewer():
    watched = guard()
    reasons = [watched.check(np.nan, skipped) for skipped in (True, True, False, True, True, True)]
    assert [bool(text) for text in reasons] == [False] * 5 + [True]
    assert reasons[-1] == "3 steps in a row had no finite loss and gradient"


@pytest.mark.parametrize("loss, spike", [(2.99, False), (3.01, True), (np.inf, True), (np.nan, True)])
def test_a_spike_is_measured_by_the_median_of_the_last_hundred_steps(loss, spike):
    watched = guard(loss_spike=3.0)
    for _ in range(50):
        assert not watched.check(1000.0, False), "too few losses to tell"
    for place in range(REMEMBERED):
        assert not watched.check(0.5 if place % 2 else 1.5, False), "falling losses are no spike"
    for _ in range(3):
        watched.check(1.0, False)  # the median of 49 times 0.5, 48 times 1.5 and these
    assert bool(watched.check(loss, False)) == spike


def test_without_a_limit_no_loss_is_a_spike():
    watched = guard()
    assert not any(watched.check(loss, False) for loss in [1.0] * 200 + [1e9])


@given(st.lists(st.tuples(st.floats(0.1, 10), st.booleans()), max_size=260), st.integers(0, 260))
def test_it_continues_from_another_ones_state(steps, place):
    """Which a run that was killed and resumed relies on to end as the undisturbed one does."""
    undisturbed, first = guard(loss_spike=2.0), guard(loss_spike=2.0)
    expected = [undisturbed.check(*step) for step in steps]
    reasons = [first.check(*step) for step in steps[:place]]
    second = guard(loss_spike=2.0, state=json.loads(json.dumps(first.state())))
    assert reasons + [second.check(*step) for step in steps[place:]] == expected
