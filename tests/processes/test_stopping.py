"""Signals that are noted between two steps, or end the process while there is nothing to save."""

import signal
import threading

import pytest

from stce_jax.errors import PreemptedError
from stce_jax.processes.stopping import NUMBERS, StopSignals, exit_on_signal


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in NUMBERS}
    yield
    for number, handler in before.items():
        left, _ = signal.getsignal(number), signal.signal(number, handler)
        assert left in (handler, signal.SIG_IGN), "a handler is left behind"


class Exits:
    """Called in the place of the end of the process."""

    def __init__(self):
        self.calls, self.called = [], threading.Event()

    def __call__(self, message, exit_code):
        self.calls.append((message, exit_code))
        self.called.set()


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.name)
def test_a_signal_during_a_step_is_noted(number):
    with StopSignals() as stop:
        stop.finish_step_first()
        assert stop.requested == ""
        signal.raise_signal(number)
        assert stop.requested == number.name


def test_with_nothing_to_save_a_signal_ends_the_process_at_once():
    exits = Exits()
    with StopSignals(exits) as stop:
        stop.end_at_once(7)
        signal.raise_signal(signal.SIGTERM)
        assert exits.called.wait(10), "the signal has been ignored"
    assert exits.calls == [("stopped by SIGTERM at step 7, which is saved; run again to resume", 75)]


def test_a_process_that_is_not_to_be_ended_raises_once_nothing_is_left_to_save():
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(PreemptedError, match="stopped by SIGTERM before its first step; run again to resume"):
            stop.end_at_once(0)


def test_another_thread_hears_of_no_signal():
    stop, before = StopSignals(), signal.getsignal(signal.SIGTERM)

    def use():
        with stop:
            assert signal.getsignal(signal.SIGTERM) is before

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()


def test_while_a_program_starts_a_signal_is_exit_75():
    exits = Exits()
    with exit_on_signal(exits):
        signal.raise_signal(signal.SIGINT)
        assert exits.called.wait(10), "the signal has been ignored"
    assert exits.calls == [("stopped by SIGINT before its first step; run again to resume", 75)]
