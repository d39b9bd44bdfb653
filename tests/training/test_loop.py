"""What the loop does on the devices: nothing is compiled twice, and nothing travels that is not sent on purpose."""

import jax
import jax.monitoring
import numpy as np
import pytest
from helpers import TINY

from stce_jax.training import evaluation, loop
from stce_jax.verbs.train import train
from stce_jax.workdir import config as configuration

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_picture")]  # each trains

COMPILATIONS = ("/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/backend_compile_duration")
CONFIG, *SMALL = TINY
# Nine steps, with evaluations of six batches after steps 2, 4, 7 and 9, and windows of one step and of two.
SHORT = ("--config.epochs=0.2", "--config.eval_every=0.05", "--config.eval_batch_size=64", "--config.log_every=2")


def short_config(data_dir):
    return configuration.load_config(
        CONFIG.removeprefix("--config="), [*SMALL, *SHORT, f"--config.data_dir={data_dir}"]
    )


class Recorder:
    """What happened on the way to each step: [(step, what)]."""

    def __init__(self, monkeypatch):
        self.step, self.seen = 1, []
        add = loop.Window.add

        def counted(window, step, metrics):
            yield from add(window, step, metrics)
            self.step = step + 1

        monkeypatch.setattr(loop.Window, "add", counted)

    def note(self, what):
        self.seen.append((self.step, what))


@pytest.fixture
def recorder(monkeypatch):
    return Recorder(monkeypatch)


def test_after_the_first_step_and_the_first_evaluation_nothing_is_compiled(recorder, data_dir, tmp_path):
    ended = []

    def note(event, duration, fun_name="", **_):
        if event in COMPILATIONS and not ended:
            recorder.note(fun_name)

    jax.monitoring.register_event_duration_secs_listener(note)  # there is no public way to take it back
    train(short_config(data_dir), tmp_path)
    ended.append(True)
    steps = {step for step, _ in recorder.seen}
    assert steps == {1, 3}, f"compiled or traced on the way to steps {sorted(steps)}: {recorder.seen}"
    names = {step: {name for at, name in recorder.seen if at == step} for step in steps}
    assert any("train_step" in name for name in names[1]) and any("eval_step" in name for name in names[3])
    assert not any("train_step" in name for name in names[3]), "the step is compiled again after an evaluation"


def test_numbers_come_from_the_devices_by_device_get_alone(recorder, monkeypatch, data_dir, tmp_path):
    """Which other devices' guard sees to; on CPUs, whose memory is the host's, JAX does not."""
    requested, array = [], type(jax.numpy.zeros(()))
    get, value = jax.device_get, array._value

    def device_get(tree):
        requested.append(tree)
        try:
            return get(tree)
        finally:
            requested.pop()

    def watched(self):
        if not requested and jax.config.jax_transfer_guard_device_to_host == "disallow":
            recorder.note(self.shape)
        return value.fget(self)

    monkeypatch.setattr(jax, "device_get", device_get)
    monkeypatch.setattr(array, "_value", property(watched))
    with jax.transfer_guard("disallow"):
        float(jax.device_put(np.float32(1)))
    assert recorder.seen == [(1, ())], "the test does not see a number that is taken in passing"
    train(short_config(data_dir), tmp_path)
    assert len(recorder.seen) == 1, f"(step, shape) of arrays that were read in passing: {recorder.seen[1:]}"


def on_the_host(batches, sharding):
    yield from batches


@pytest.mark.parametrize("module", [loop, evaluation.loader], ids=["training", "evaluation"])
def test_an_array_that_travels_by_accident_ends_the_run(monkeypatch, data_dir, tmp_path, module):
    monkeypatch.setattr(module, "to_devices", on_the_host)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train(short_config(data_dir), tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == (0 if module is loop else 1)
