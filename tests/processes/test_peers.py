"""What processes that run together agree on, and where they wait for one another."""

import itertools
import re
import threading
import types

import jax
import jax.numpy as jnp
import pytest
from helpers import wait_for

from stce_jax.processes import peers as processes

# --- the code


def test_the_code_digest_changes_with_any_file_and_version(monkeypatch, tmp_path):
    package = tmp_path / "stce_jax"
    (package / "processes").mkdir(parents=True)
    (package / "processes" / "step.py").write_text("one")
    monkeypatch.setattr(processes, "__file__", str(package / "processes" / "peers.py"))
    digests = [processes.code_digest(), processes.code_digest()]
    assert digests[0] == digests[1] and re.fullmatch("[0-9a-f]{64}", digests[0])
    (package / "processes" / "step.py").write_text("two")
    digests.append(processes.code_digest())
    (package / "processes" / "step.py").rename(package / "step.py")
    digests.append(processes.code_digest())
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0")
    digests.append(processes.code_digest())
    assert len(set(digests)) == 4, "something else is run under the same digest"


# --- waiting for one another


class Store:
    """What this needs of the coordination service's client."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value):
        assert key not in self.values
        self.values[key] = value

    def key_value_dir_get(self, folder):
        return [(key, value) for key, value in self.values.items() if key.startswith(folder)]


@pytest.fixture
def store(monkeypatch):
    """That of a run of two processes, of which this is the first."""
    store = Store()
    monkeypatch.setattr(processes, "_heartbeat", types.SimpleNamespace(client=store, index=0, count=2))
    monkeypatch.setattr(processes, "_met", itertools.count())
    return store


def test_a_step_is_compiled_then_met_over_then_run_and_all_that_once(store):
    traced, results = [], []

    def triple(x):
        traced.append(x)
        return 3 * x

    step = processes.compile_together(jax.jit(triple))
    calling = threading.Thread(target=lambda: results.append(step(jnp.float32(2))), daemon=True)
    calling.start()
    wait_for(lambda: store.values, "meeting")
    assert traced and store.values == {"stce/met/0/0": ""}
    calling.join(0.2)
    assert calling.is_alive() and not results, "it does not wait for the other to compile"
    store.key_value_set("stce/met/0/1", "")
    calling.join(10)
    assert results == [6] and step(jnp.float32(3)) == 9
    assert len(traced) == 1 and len(store.values) == 2, "it is compiled, or met over, a second time"


def test_alone_a_step_stays_what_it_is():
    step = jax.jit(jnp.sin)
    assert processes.compile_together(step) is step
    processes.meet()
