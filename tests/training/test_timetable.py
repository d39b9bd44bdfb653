"""When things happen: unchanged runs as ever, and runs whose batch or epochs were changed on the way."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stce_jax.errors import ConfigError
from stce_jax.recipe.schedules import make_schedule
from stce_jax.training.timetable import Origin, Timetable, is_last

images = st.integers(1, 5000)
batches = st.integers(1, 512)
lengths = st.floats(0.1, 50)
everies = st.floats(0.01, 3)


def old_numbers(images, batch_size, epochs, eval_every, step):
    """(epoch after a step, steps in all, whether the step is evaluated) by version 0.1.0, which counted steps alone."""
    epoch = images / batch_size
    total, every = round(epochs * epoch), max(1.0, eval_every * epoch)
    nearest = max(1, round(step / every))
    return step / epoch, total, step == total or step == max(1, round(nearest * every))


@given(images, batches, lengths, everies, st.integers(1, 5000))
def test_a_run_that_nobody_changes_has_the_numbers_of_version_0_1(images, batch_size, epochs, eval_every, step):
    table = Timetable(images, batch_size, epochs, eval_every)
    found = table.epoch_after(step), table.total, table.evaluates(step)
    assert found == old_numbers(images, batch_size, epochs, eval_every, step)
    assert (table.position(step), table.offset, table.shift) == (step * batch_size, 0, 0.0)


@given(images, batches, lengths, everies, st.lists(st.tuples(batches, lengths, everies), min_size=1, max_size=3))
def test_a_changed_run_continues_with_the_next_image_and_ends_at_its_epochs(images, batch, epochs, every, changes):
    table, step = Timetable(images, batch, epochs, every), 0
    for batch_size, more, eval_every in changes:
        step += max(0, (table.total - step) // 2)
        position, rate, goal = table.position(step), table.epoch_after(step), table.epoch_after(step) + more
        table = table.resumed(step, batch_size=batch_size, epochs=goal, eval_every=eval_every)
        assert table.position(step) == position, "an image is skipped, or comes again"
        assert table.position(step + 1) == position + batch_size
        assert table.epoch_after(step) == pytest.approx(rate, abs=1e-9)
        assert abs(table.position(table.total) - goal * images) <= batch_size / 2 + 1e-6, "it ends too early or late"
        assert table.saves(step) and table.evaluates(table.total)


@given(st.integers(50, 5000), batches, batches, st.floats(0.1, 3), st.floats(0, 1))
def test_evaluations_stay_at_their_epochs_when_the_batch_changes(images, first, second, every, share):
    before = Timetable(images, first, 10.0, every)
    step = round(share * before.total)
    table = before.resumed(step, batch_size=second, epochs=10.0, eval_every=every)
    assume(every * table.epoch > 1 and table.total - step < 3000)
    found = [number for number in range(step + 1, table.total + 1) if table.evaluates(number)]
    due = [n * every for n in range(1, 200) if table.epoch_after(step) + 1 / table.epoch < n * every < 10.0]
    for epoch in due:
        assert any(abs(table.epoch_after(number) - epoch) <= 0.51 / table.epoch for number in found), (epoch, found)
    assert len(found) <= len(due) + 3, "more evaluations than epochs to evaluate"


def test_with_an_evaluation_a_step_no_step_is_left_out():
    table = Timetable(45, 8, 4.0, 0.01, Origin(3, 20))  # the position is half a batch off
    assert all(table.evaluates(step) for step in range(4, table.total + 1))


def test_changing_nothing_or_nothing_of_the_timetable_keeps_the_origin():
    table = Timetable(100, 8, 2.0, 1.0, Origin(3, 17))
    assert table.resumed(9, batch_size=8, epochs=2.0, eval_every=1.0) is table
    changed = table.resumed(9, batch_size=8, epochs=3.0, eval_every=1.0)
    assert changed.origin == Origin(9, table.position(9)) and changed.offset == table.offset


@given(images, batches, lengths)
def test_a_finished_run_is_not_beyond_its_own_epochs(images, batch_size, epochs):
    table = Timetable(images, batch_size, epochs, 1.0)
    assume(table.total)
    for other in (1, batch_size, 7 * batch_size):
        after = table.resumed(table.total, batch_size=other, epochs=epochs, eval_every=1.0)
        remaining = images * epochs - table.position(table.total)
        assert after.total - table.total == pytest.approx(max(remaining, -batch_size) / other, abs=0.51)


def test_fewer_epochs_than_are_over_are_refused_and_fewer_than_were_planned_are_not():
    table = Timetable(100, 10, 300.0, 1.0)
    assert table.resumed(2000, batch_size=10, epochs=250.0, eval_every=1.0).total == 2500
    with pytest.raises(ConfigError, match=r"at epoch 200\.00 already, beyond config\.epochs 150; give more --config"):
        table.resumed(2000, batch_size=20, epochs=150.0, eval_every=1.0)


@pytest.mark.parametrize("batch_size", [8, 12, 64])
def test_the_schedule_belongs_to_the_epoch_whatever_the_batch_was(batch_size):
    """Straight through with a batch, and changed to it after step 40 of batches of 32."""

    def schedule(table):
        steps = {"warmup_steps": round(2 * table.epoch), "total_steps": round(table.epochs * table.epoch)}
        return make_schedule(peak=1e-3, warmup_from=1e-6, final=1e-5, shift=table.shift, **steps)

    straight = Timetable(960, batch_size, 10.0, 1.0)
    changed = Timetable(960, 32, 10.0, 1.0).resumed(40, batch_size=batch_size, epochs=10.0, eval_every=1.0)
    for epoch in (2, 5, 9.5, 10):
        late = round(epoch * straight.epoch + changed.shift)
        assert changed.epoch_after(late) == pytest.approx(epoch, abs=0.5 / changed.epoch)
        expected = schedule(straight)(changed.epoch_after(late) * straight.epoch)
        np.testing.assert_allclose(schedule(changed)(np.int32(late)), expected, rtol=1e-4)


@given(st.integers(20, 5000), batches, batches, st.integers(1, 50))
def test_the_last_step_is_known_by_its_epoch_when_the_batch_has_changed(images, first, second, epochs):
    before = Timetable(images, first, float(epochs), 1.0)
    table = before.resumed(before.total // 2, batch_size=second, epochs=float(epochs), eval_every=1.0)
    halves = 2 * (epochs * table.epoch + table.shift)
    assume(abs(halves - round(halves)) > 1e-3 and table.total > table.origin.step + 1)  # no two are equally near
    for step, expected in ((table.total, True), (table.total - 1, False)):
        assert is_last(step, table.epoch_after(step), epochs, table.epoch) == expected
