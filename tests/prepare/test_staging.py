"""An orderly end on signals, whatever they cut in two."""

import signal
import threading

import pytest

from stce_jax.errors import DataError, PreemptedError
from stce_jax.prepare.staging import ends_cleanly, staging
from stce_jax.processes.stopping import NUMBERS

each_signal = pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.name)


@pytest.fixture(autouse=True)
def handlers():
    """Fails where a test does not leave the handlers of signals as it found them."""
    before = [signal.getsignal(number) for number in NUMBERS]
    yield
    assert [signal.getsignal(number) for number in NUMBERS] == before


class HalfTaken:
    """A lock that a signal reaches while it is being taken: leaving it then fails."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            pass

    def __exit__(self, *error: object) -> None:
        try:
            signal.raise_signal(self._number)
        finally:
            self._lock.release()


@each_signal
def test_a_signal_in_a_lock_is_a_signal(number, tmp_path):
    with pytest.raises(PreemptedError, match=f"stopped by {number.name}; nothing is left half-written"):
        with ends_cleanly(), staging(tmp_path, "data"), HalfTaken(number):
            pass
    assert not list(tmp_path.iterdir())


@each_signal
def test_a_signal_that_is_taken_for_an_error_is_a_signal(number):
    with pytest.raises(PreemptedError, match=number.name), ends_cleanly():
        try:
            with HalfTaken(number):
                pass
        except RuntimeError as error:
            raise DataError(f"cannot write: {error}") from error


@each_signal
def test_a_signal_at_the_first_and_the_last_moment_is_heard(number, monkeypatch):
    true_signal = signal.signal
    for moment in range(4):  # between the handlers that are set, and between those that are set back
        calls = []

        def at_the_moment(*arguments, moment=moment, calls=calls):
            before = true_signal(*arguments)
            calls.append(arguments)
            if len(calls) == moment + 1 and signal.getsignal(number) not in (signal.SIG_IGN, handlers_before[number]):
                signal.raise_signal(number)
            return before

        handlers_before = {each: signal.getsignal(each) for each in NUMBERS}
        with monkeypatch.context() as patched:
            patched.setattr(signal, "signal", at_the_moment)
            try:
                with ends_cleanly():
                    pass
            except PreemptedError as error:
                assert number.name in str(error)
        assert {each: signal.getsignal(each) for each in NUMBERS} == handlers_before, moment


def test_errors_without_a_signal_stay_what_they_are():
    with pytest.raises(RuntimeError, match="release unlocked lock"), ends_cleanly():
        threading.Lock().release()
