"""What is larger than the machine's memory is refused before it is made."""

import types

import pytest

from stce_jax.errors import ConfigError
from stce_jax.recipe.optimizers import adamw
from stce_jax.training import memory
from stce_jax.training.assemble import build_model, build_timetable, load_config
from stce_jax.training.memory import check_memory
from stce_jax.training.mesh import make_mesh, sharded_shapes
from stce_jax.training.state import abstract_state

pytestmark = pytest.mark.usefixtures("eight_devices")

GIB = 2**30


@pytest.fixture(scope="module")
def shapes():
    """(mesh, state) of the digits' model: 8 devices, each with a copy of 2 MB."""
    mesh, config = make_mesh(), load_config("digits")
    optimizer = adamw(1e-3, weight_decay=0.0, beta1=0.9, beta2=0.99, epsilon=1e-8)
    state = abstract_state(build_model(config, 10), optimizer, image_size=32, with_ema=False)
    return mesh, sharded_shapes(state, mesh)


@pytest.mark.parametrize(
    "words, room, named",
    [
        ([], 16 * GIB, None),
        (["--config.eval_batch_size=1000000"], 8 * GIB, "config.eval_batch_size: 1000000 images of 32 pixels in float"),
        (["--config.batch_size=1000000"], 8 * GIB, "would take 11.4 GiB, the machine has 8.0 GiB for it; give less"),
        (["--config.image_size=8192"], 16 * GIB, "config.batch_size: 64 images of 8192 pixels"),
        (["--config.cache_megabytes=102400"], 64 * GIB, "config.cache_megabytes=102400 would take 100.0 GiB"),
        (
            ["--config.cache_megabytes=0"],
            10 * 2**20,
            "config.model: parameters, optimizer state and average would take",
        ),
    ],
)
def test_what_does_not_fit_is_refused(monkeypatch, shapes, words, room, named):
    mesh, state = shapes
    monkeypatch.setattr(memory, "physical_memory", lambda: room)
    config = load_config("digits", words)
    if named is None:
        check_memory(config, state, mesh)
        return
    with pytest.raises(ConfigError) as error:
        check_memory(config, state, mesh)
    assert named in str(error.value) and "\n" not in str(error.value)


def test_this_machine_has_memory():
    assert 2**28 < memory.physical_memory() < 2**50


@pytest.mark.parametrize("key", ["epochs", "optimizer.warmup_epochs"])
def test_more_steps_than_a_state_can_count_are_refused(key):
    config = load_config("digits", ["--config.batch_size=1", f"--config.{key}=1e6"])
    with pytest.raises(ConfigError, match=f"config.{key} is 1000000.0, which is 10,000,000,000 steps"):
        build_timetable(config, types.SimpleNamespace(train=range(10_000)))
