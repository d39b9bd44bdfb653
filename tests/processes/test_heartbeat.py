"""Signs of life, over a store in memory: processes that come, leave, and end. Real ones are in tests/slow."""

import threading
import time
from typing import ClassVar

import pytest

from stce_jax.processes import heartbeat
from stce_jax.processes.heartbeat import Heartbeat


class Store:
    """What the coordination service's client offers."""

    def __init__(self):
        self.values, self.lock = {}, threading.Lock()

    def key_value_set(self, key, value, allow_overwrite=False):
        with self.lock:
            assert allow_overwrite or key not in self.values
            self.values[key] = value

    def key_value_dir_get(self, folder):
        with self.lock:
            return [(key, value) for key, value in self.values.items() if key.startswith(folder)]


class Process(Heartbeat):
    made: ClassVar = []

    def __init__(self, *arguments):
        self.made.append(self)
        super().__init__(*arguments)


class EndedError(Exception):
    """In the place of the end of the process."""


@pytest.fixture
def ended(monkeypatch):
    """Exit codes of processes that would have ended; their threads then wait for good."""
    codes = []

    def end(code):
        codes.append(code)
        raise EndedError

    monkeypatch.setattr(heartbeat.os, "_exit", end)
    monkeypatch.setattr(heartbeat, "on_abort", lambda explain: None)
    monkeypatch.setattr(heartbeat, "BEAT", 0.1)
    monkeypatch.setattr(heartbeat, "POLL", 0.05)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    yield codes
    for process in Process.made:  # before the real `os._exit` is back
        process._closed.set()
        for thread in process._threads:
            thread.join(1)
    Process.made.clear()


def start(store, index, count=2):
    """A process, in a thread of its own until all have come."""
    made: ClassVar = []
    thread = threading.Thread(target=lambda: made.append(Process(store, index, count, "127.0.0.1:1")), daemon=True)
    thread.start()
    return thread, made


def start_two(store):
    both = [start(store, index) for index in (0, 1)]
    for thread, _ in both:
        thread.join(10)
    return [made[0] for _, made in both]


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def test_two_come_and_leave_together(ended):
    first, second = start_two(Store())
    assert first.name(1) == second.name(1) and first.name(1).startswith("process 1 on ")
    left = []

    def leave(process):
        for phase in (1, 2):
            process.leave(phase)
        left.append(process.close())

    leaving = [threading.Thread(target=leave, args=(process,), daemon=True) for process in (first, second)]
    leaving[0].start()
    time.sleep(0.3)
    assert leaving[0].is_alive(), "the first does not wait for the second"
    leaving[1].start()
    for thread in leaving:
        thread.join(10)
        assert not thread.is_alive(), "a process that has left is waited for"
    assert left == [True, True] and not ended


@pytest.mark.parametrize("phase", [0, 1])
def test_who_is_killed_when_process_0_has_done_its_work_ends_nobody(ended, monkeypatch, phase):
    """Before it knows that others have come to their end, or after."""
    monkeypatch.setattr(heartbeat, "FAREWELL", 0.5)
    first, second = start_two(Store())
    if phase:
        threading.Thread(target=second.leave, args=(1,), daemon=True).start()
        wait_for(lambda: first._states[1]["left"] == 1)
    second._closed.set()  # killed
    for reached in (1, 2):
        first.leave(reached)
    assert not first.close(), "the second is said to be there"
    assert not ended


def test_who_waits_for_process_0_is_not_done_before_that_is(ended, monkeypatch):
    monkeypatch.setattr(heartbeat, "PEER_TIMEOUT", 0.5)
    first, second = start_two(Store())
    first._closed.set()  # killed, with a checkpoint perhaps half written
    threading.Thread(target=second.leave, args=(1,), daemon=True).start()
    wait_for(lambda: ended)
    assert ended == [75]


def test_one_that_fails_ends_the_other_with_its_message_and_code(ended, capfd):
    first, second = start_two(Store())
    with pytest.raises(EndedError):
        second.fail("no such flower", 3)
    wait_for(lambda: len(ended) == 2)
    assert ended == [3, 3]
    lines = capfd.readouterr().err.splitlines()
    assert lines == ["stce: no such flower", f"stce: {first.name(1)} ended: no such flower"]


def test_one_that_is_silent_is_given_up(ended, monkeypatch, capfd):
    monkeypatch.setattr(heartbeat, "PEER_TIMEOUT", 0.5)
    first, second = start_two(Store())
    second._closed.set()  # killed
    wait_for(lambda: ended)
    assert ended == [75]
    assert f"stce: {first.name(1)} does not answer since 0 s" in capfd.readouterr().err
