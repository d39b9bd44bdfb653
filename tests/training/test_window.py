"""What the log lines say of the steps between them."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stce_jax.training.window import Window


def metrics(loss, skipped=0):
    return {"loss": jnp.float32(loss), "skipped": jnp.float32(skipped)}


def test_every_step_is_given_once_and_in_order():
    window = Window(batch_size=4)
    given = [[step for step, _ in window.add(step, metrics(step))] for step in range(1, 6)]
    assert given == [[1], [], [], [2], [3]], "the host waits for other steps than the first, and the one two before"
    assert [(step, values["loss"]) for step, values in window.drain()] == [(4, 4.0), (5, 5.0)]
    assert window.close()["loss"] == 3.0


def test_skipped_steps_count_but_leave_the_means_alone():
    window = Window(batch_size=4)
    for step, loss in enumerate((1.0, np.nan, 3.0), start=1):
        list(window.add(step, metrics(loss, skipped=np.isnan(loss))))
    list(window.drain())
    values = window.close()
    assert (values["loss"], values["skipped"]) == (2.0, 1)
    list(window.add(4, metrics(np.inf, skipped=1)))
    list(window.drain())
    values = window.close()
    assert np.isnan(values["loss"]) and values["skipped"] == 1


def slowly(seconds, count):
    for _ in range(count):
        time.sleep(seconds)
        yield {}


@pytest.mark.parametrize("log_every", [1, 2, 10])
def test_the_share_of_waiting_is_that_of_the_time_without_data(log_every):
    """20 ms a batch without any step to compute, then 20 ms steps that keep the device busy for longer than a batch."""
    window = Window(batch_size=1)
    batches = slowly(0.02, 21)
    shares = []
    for step in range(1, 22):
        window.next(batches)
        list(window.add(step, {"loss": jax.numpy.float32(step), "skipped": jax.numpy.float32(0)}))
        if step % log_every == 0:
            list(window.drain())
            shares.append(window.close()["data_wait"])
    # All but the steps' own time, of which a busy machine may take more.
    assert np.mean(shares[1:]) > 0.5, shares
    assert window.data_wait() > 0.5


def test_time_in_which_the_device_is_busy_is_no_waiting():
    class Busy(float):
        def is_ready(self):
            return False

    window = Window(batch_size=1)
    batches = slowly(0.01, 10)
    for _ in range(10):
        window.next(batches)
        window._finished, window._last = [{"loss": 1.0, "skipped": 0.0}], Busy(1)
    assert window.close()["data_wait"] == 0
