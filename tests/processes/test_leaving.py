"""The end of JAX's part in a run of several processes. Real ones are in tests/slow."""

import os
import sys
import threading

import jax
import pytest
from jax._src import distributed

from stce_jax.processes import leaving


@pytest.fixture
def parts(monkeypatch):
    """JAX's client and service, in whose place are objects that count their references."""
    handlers = []
    monkeypatch.setattr(leaving, "on_abort", handlers.append)
    parts = [object(), object()]
    monkeypatch.setattr(distributed.global_state, "client", parts[0])
    monkeypatch.setattr(distributed.global_state, "service", parts[1])
    return parts, handlers


def test_when_all_are_there_jax_leaves(parts, monkeypatch):
    left = []
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: left.append(True))
    leaving.shut_down(complete=True, timeout=10)
    assert left == [True] and parts[1] == [None], "an abort would still be outlived"


@pytest.mark.parametrize("complete", [False, True], ids=["known", "killed meanwhile"])
def test_who_has_gone_is_not_waited_for_and_nothing_is_deleted_that_would(parts, monkeypatch, complete):
    released = threading.Event()
    monkeypatch.setattr(jax.distributed, "shutdown", released.wait)
    before = [sys.getrefcount(part) for part in parts[0]]
    leaving.shut_down(complete=complete, timeout=0.1)
    released.set()
    state = distributed.global_state
    assert state.client is None and state.service is None, "JAX would shut them down while Python exits"
    # One reference of JAX's state less, and one that never goes.
    assert [sys.getrefcount(part) for part in parts[0]] >= before
    assert not parts[1], "an abort would end this process"


def test_what_is_written_below_python_is_dropped_and_nothing_after_it(capfd):
    with leaving.without_stderr():
        os.write(2, b"pages\n")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"
