"""Checkpoints: to the bit, onto any devices, the right ones kept, and one line for everything that can go wrong."""

import gc
import logging
import shutil
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn

from stce_jax.engine.checkpoint import Checkpoints
from stce_jax.engine.mesh import batch_sharding, make_mesh, state_shardings
from stce_jax.engine.optim import make_optimizer, make_schedule
from stce_jax.engine.state import TrainState, init_state
from stce_jax.engine.step import make_train_step
from stce_jax.errors import CheckpointError

META = {"class_names": ["one", "zwei", "três"], "mean": [0.1, 1 / 3, 1e-30], "epoch": 2.5, "nested": {"none": None}}
SCHEDULE = make_schedule(peak=1e-3, warmup_from=1e-6, final=1e-5, warmup_steps=2, total_steps=50)
OPTIMIZER = make_optimizer(SCHEDULE, weight_decay=0.05, beta1=0.9, beta2=0.999, epsilon=1e-8, clip_norm=1.0)
pytestmark = pytest.mark.usefixtures("everything_is_split", "quick_compilation")
ONE, EIGHT, FSDP_2, FSDP_8 = (1, 1), (8, 1), (8, 2), (8, 8)  # (devices, fsdp)


def mesh_of(devices, fsdp):
    return make_mesh(fsdp, jax.devices()[:devices])


def make_state(step, seed=0, *, topology=ONE, ema=True):
    """A TrainState of noise, with values among it that a conversion on the way would change."""
    rng = np.random.default_rng(seed)
    awkward = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45, np.float32(1) / 3, 3.4e38, 1], np.float32)

    def noise(*shape):
        return rng.normal(size=shape).astype(np.float32)

    variables = {
        "params": {"dense": {"kernel": noise(16, 24), "bias": awkward}, "class_token": noise(1, 1, 6)},
        "batch_stats": {"norm": {"mean": noise(8), "var": noise(8) ** 2}},
    }
    optimizer = jax.tree.map(
        lambda leaf: rng.integers(0, 99, leaf.shape).astype(leaf.dtype), OPTIMIZER.init(variables["params"])
    )
    average = jax.tree.map(lambda leaf: leaf + np.float32(1), variables) if ema else None
    state = TrainState(np.int32(step), variables, optimizer, average)
    return jax.device_put(state, state_shardings(state, mesh_of(*topology)))


def host(tree):
    """A copy that nothing on the devices can reach.

    NumPy looks at a copy, because JAX does not donate an array that NumPy has looked at.
    """
    return jax.tree.map(lambda leaf: np.array(jnp.copy(leaf)), tree)


def assert_same_bits(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True)
    for (path, left), right in pairs:
        left, right, name = np.asarray(left), np.asarray(right), jax.tree_util.keystr(path)
        assert (left.dtype, left.shape) == (right.dtype, right.shape), f"{name} changed its type or shape"
        assert left.tobytes() == right.tobytes(), f"{name} changed:\n{left}\n{right}"


def save_six(directory):
    with Checkpoints(directory, create=True) as checkpoints:
        for step, top1 in enumerate([0.1, 0.9, 0.3, 0.2, 0.5, 0.4], start=1):
            checkpoints.save(make_state(step, seed=step), META | {"epoch": step}, {"top1": top1, "loss": -top1})


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    """A directory in which six steps were saved, evaluated 0.1 0.9 0.3 0.2 0.5 0.4. Tests only read it."""
    directory = tmp_path_factory.mktemp("six") / "checkpoints"
    save_six(directory)
    return directory


# --- round trips


@pytest.mark.parametrize("ema", [True, False], ids=["ema", "no ema"])
@pytest.mark.parametrize(
    "source, target", [(EIGHT, EIGHT), (FSDP_8, ONE), (ONE, FSDP_8), (FSDP_8, FSDP_2)], ids=lambda pair: str(pair)
)
def test_a_state_comes_back_bit_for_bit_onto_any_devices(tmp_path, source, target, ema):
    state = make_state(7, topology=source, ema=ema)
    empty = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    with Checkpoints(tmp_path, create=True) as checkpoints:
        checkpoints.save(state, META)
        checkpoints.wait()
        restored = checkpoints.restore(7, empty, mesh_of(*target))
    assert_same_bits(restored, host(state))
    for leaf, sharding in zip(
        jax.tree.leaves(restored), jax.tree.leaves(state_shardings(state, mesh_of(*target))), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim), "an array is not where its sharding says"
    kernels = {leaf.addressable_shards[0].data.shape for leaf in jax.tree.leaves(restored) if leaf.shape == (16, 24)}
    assert kernels == {(16, 24 // target[1])}, "the kernel, its moments or its average are not split over fsdp"


class Wide(nn.Module):
    """Large enough for a write to last longer than a step."""

    @nn.compact
    def __call__(self, images, *, train):
        features = nn.Dense(512)(images.reshape(len(images), -1))
        return nn.Dense(10)(nn.BatchNorm(use_running_average=not train, momentum=0.9)(features))


def test_steps_that_donate_the_saved_state_do_not_reach_into_the_checkpoint(tmp_path):
    """Training goes on while a checkpoint is written, and overwrites the very buffers that were saved."""
    mesh = mesh_of(*FSDP_8)
    state = init_state(Wide(), OPTIMIZER, seed=0, image_size=16, with_ema=True, mesh=mesh)
    train_step = make_train_step(
        Wide(),
        OPTIMIZER,
        lambda key, step, images, labels: (images / 255.0, jax.nn.one_hot(labels, 10)),
        seed=0,
        ema_decay=0.9,
        state=state,
        mesh=mesh,
    )
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (8, 16, 16, 3), dtype=np.uint8), "label": np.arange(8, dtype=np.int32)}
    batch = jax.device_put(batch, batch_sharding(mesh))
    state, _ = train_step(state, batch)
    with Checkpoints(tmp_path, create=True) as checkpoints:
        copies = {}
        for _ in range(3):
            copies[int(state.step)] = host(state)
            checkpoints.save(state, META)
            for _ in range(5):
                old, (state, _) = state, train_step(state, batch)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old)), "the test's steps must donate their state"
        final, steps = host(state), checkpoints.steps()
        assert steps == [6, 11]
        for step in steps:
            restored = checkpoints.restore(step, state, mesh)
            assert_same_bits(restored, copies[step])
    for _ in range(5):  # the restored state of step 11 can itself be trained on, and donated, with the same result
        restored, _ = train_step(restored, batch)
    assert_same_bits(restored, final)


def test_meta_comes_back_as_it_was(six):
    with Checkpoints(six) as checkpoints:
        assert checkpoints.restore_meta(6) == META | {"epoch": 6}
        assert checkpoints.restore_meta(2) == META | {"epoch": 2}


@pytest.mark.parametrize("ema", [False, True], ids=["variables", "average"])
def test_variables_or_their_average_alone(six, ema):
    state = make_state(5, seed=5)
    with Checkpoints(six) as checkpoints:
        restored = checkpoints.restore_variables(5, state.variables, mesh_of(*EIGHT), ema=ema)
    assert_same_bits(restored, host(state.ema if ema else state.variables))
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(restored))


# --- which are kept, and found


def test_the_last_two_and_the_best_are_kept(six):
    assert {path.name for path in six.iterdir()} == {"2", "5", "6"}
    with Checkpoints(six) as checkpoints:
        assert checkpoints.steps() == [2, 5, 6]
        assert checkpoints.find("last") == 6
        assert checkpoints.find("best") == 2
        assert checkpoints.find(5) == checkpoints.find("5") == 5
        assert_same_bits(
            checkpoints.restore(checkpoints.find("best"), make_state(0), mesh_of(*ONE)), host(make_state(2, seed=2))
        )


def test_the_best_moves_on_over_a_restart(tmp_path):
    """Each save by a process of its own, as it were: what was best before is known from the disk."""
    kept = {1: [1], 2: [1, 2], 3: [2, 3], 4: [2, 3, 4], 5: [4, 5], 6: [5, 6]}
    for step, top1 in enumerate([0.1, 0.6, 0.3, 0.2, 0.7, 0.4], start=1):
        with Checkpoints(tmp_path, create=True) as checkpoints:
            checkpoints.save(make_state(step, ema=False), META, {"top1": top1})
            checkpoints.wait()
            assert checkpoints.steps() == kept[step], f"kept after the save of step {step}"
            assert checkpoints.find("best") == (1 if step < 2 else 2 if step < 5 else 5)


@pytest.mark.parametrize("which", ["7", 7, 1, "1", "0", "-6", "6.0", "latest", "", None], ids=repr)
def test_what_is_not_there_is_refused_naming_what_is(six, which):
    with Checkpoints(six) as checkpoints, pytest.raises(CheckpointError) as error:
        checkpoints.find(which)
    message = str(error.value)
    assert repr(which) in message and "[2, 5, 6]" in message and "\n" not in message
    assert error.value.exit_code == 4


@pytest.mark.parametrize("exists", [True, False], ids=["empty", "missing"])
@pytest.mark.parametrize("which", ["last", "best", "3"])
def test_a_directory_without_checkpoints(tmp_path, exists, which):
    directory = tmp_path / "none"
    if exists:
        directory.mkdir()
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.steps() == []
        with pytest.raises(CheckpointError, match=r"there is no checkpoint in .*none; train first"):
            checkpoints.find(which)
    assert directory.exists() == exists, "looking must not make a directory"


def test_saves_without_metrics_are_never_the_best(tmp_path):
    """Such as those made when a run is stopped between two evaluations."""
    with Checkpoints(tmp_path, create=True) as checkpoints:
        checkpoints.save(make_state(1, ema=False), META)
        with pytest.raises(CheckpointError, match="has been evaluated yet; use last"):
            checkpoints.find("best")
        checkpoints.save(make_state(2, ema=False), META, {"top1": 0.25})
        for step in (3, 4, 5):
            checkpoints.save(make_state(step, ema=False), META)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4, 5]
        assert (checkpoints.find("best"), checkpoints.find("last")) == (2, 5)


# --- what can go wrong


def one_line(error, *words):
    """The message of an error, which is a line that a terminal can show, and holds these words."""
    message = str(error.value)
    assert "\n" not in message and message == message.strip()
    for word in words:
        assert word in message, f"{word!r} is not in {message!r}"
    assert len(message) < 600, f"that is no line but a dump of {len(message)} characters: {message}"
    return message


def test_the_same_step_twice_is_refused_and_the_first_stays(tmp_path):
    with Checkpoints(tmp_path, create=True) as checkpoints:
        checkpoints.save(make_state(3, seed=1), META)
        with pytest.raises(CheckpointError) as error:
            checkpoints.save(make_state(3, seed=2), META)
        one_line(error, "checkpoint 3", str(tmp_path))
        assert_same_bits(checkpoints.restore(3, make_state(0), mesh_of(*ONE)), host(make_state(3, seed=1)))


def test_an_average_that_was_not_kept_is_said_to_be_missing(tmp_path):
    state = make_state(4, ema=False)
    with Checkpoints(tmp_path, create=True) as checkpoints:
        checkpoints.save(state, META)
        checkpoints.wait()
        with pytest.raises(CheckpointError) as error:
            checkpoints.restore_variables(4, state.variables, mesh_of(*ONE), ema=True)
        one_line(error, "checkpoint 4", "moving average", "ema_decay was 0")
        with pytest.raises(CheckpointError) as error:
            checkpoints.restore(4, make_state(0, ema=True), mesh_of(*ONE))
        one_line(error, "checkpoint 4", "ema")


def truncate(directory, item):
    """Halves the files that hold an item's arrays, as a full disk or a broken copy would."""
    files = [path for path in (directory / "6" / item / "d").iterdir() if path.is_file()]
    assert files, "Orbax keeps its arrays elsewhere than this test believes"
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("item", ["variables", "optimizer", "ema"])
def test_a_truncated_data_file_is_one_line_that_names_the_step(six, tmp_path, item, capfd, monkeypatch):
    directory = shutil.copytree(six, tmp_path / "copy")
    truncate(directory, item)
    unraised = []
    monkeypatch.setattr(sys, "unraisablehook", unraised.append)
    with Checkpoints(directory) as checkpoints:
        with pytest.raises(CheckpointError) as error:
            checkpoints.restore(6, make_state(0), mesh_of(*FSDP_8))
        one_line(error, "cannot read checkpoint 6", str(directory), "use another one, or delete its folder")
        assert_same_bits(checkpoints.restore(5, make_state(0), mesh_of(*ONE)), host(make_state(5, seed=5)))
    del error
    gc.collect()
    time.sleep(0.3)  # reads that are still under way
    assert not unraised, f"tracebacks beside the one line: {unraised[0]}"
    assert capfd.readouterr() == ("", ""), "something is printed beside the one line"


def test_a_truncated_variables_file_is_noticed_when_they_are_read_alone(six, tmp_path):
    directory = shutil.copytree(six, tmp_path / "copy")
    truncate(directory, "variables")
    with Checkpoints(directory) as checkpoints:
        with pytest.raises(CheckpointError) as error:
            checkpoints.restore_variables(6, make_state(0).variables, mesh_of(*ONE))
        one_line(error, "cannot read checkpoint 6")
        checkpoints.restore_variables(6, make_state(0).variables, mesh_of(*ONE), ema=True)


def test_a_truncated_meta_is_noticed(six, tmp_path):
    directory = shutil.copytree(six, tmp_path / "copy")
    path = directory / "6" / "meta" / "metadata"
    path.write_bytes(path.read_bytes()[:-3])
    with Checkpoints(directory) as checkpoints, pytest.raises(CheckpointError) as error:
        checkpoints.restore_meta(6)
    one_line(error, "cannot read checkpoint 6")


def test_missing_variables_are_not_taken_for_a_missing_average(six, tmp_path):
    directory = shutil.copytree(six, tmp_path / "copy")
    shutil.rmtree(directory / "6" / "variables")
    with Checkpoints(directory) as checkpoints, pytest.raises(CheckpointError) as error:
        checkpoints.restore_variables(6, make_state(0).variables, mesh_of(*ONE))
    assert "moving average" not in one_line(error, "checkpoint 6"), "the average is there; the variables are not"


@pytest.mark.parametrize(
    "change",
    [
        lambda params: params["dense"] | {"kernel": jnp.zeros((16, 8))},
        lambda params: params["dense"] | {"more": jnp.zeros(3)},
        lambda params: {"kernel": params["dense"]["kernel"]},
    ],
    ids=["other shape", "one more", "one less"],
)
def test_a_checkpoint_of_another_model_is_refused(six, change):
    variables = make_state(0).variables
    variables = variables | {"params": variables["params"] | {"dense": change(variables["params"])}}
    with Checkpoints(six) as checkpoints, pytest.raises(CheckpointError) as error:
        checkpoints.restore_variables(6, variables, mesh_of(*ONE))
    one_line(error, "checkpoint 6")


FULL_DISK = ValueError("RESOURCE_EXHAUSTED: No space left on device [os_error_code='28']\nmore\nand more")


@pytest.mark.parametrize("error", [FULL_DISK, OSError(30, "Read-only file system")], ids=["full", "read-only"])
@pytest.mark.parametrize("method", ["save", "wait_until_finished", "close"])
def test_a_failed_write_is_one_line_whenever_it_comes_out(tmp_path, monkeypatch, method, error):
    """Orbax writes in the background: it may raise at the next save, at the wait, or at the end."""

    def fail(*_, **__):
        raise error

    with pytest.raises(CheckpointError) as raised, Checkpoints(tmp_path, create=True) as checkpoints:
        monkeypatch.setattr(ocp.CheckpointManager, method, fail)
        if method == "save":
            checkpoints.save(make_state(1), META)
        elif method == "wait_until_finished":
            checkpoints.wait()
    one_line(raised, "cannot write", str(tmp_path), str(error).splitlines()[0])


def test_the_normal_path_says_nothing(tmp_path, caplog, capfd):
    """Saves with and without metrics, a restart, restores: no warning, and nothing on the terminal."""
    absl = logging.getLogger("absl")
    assert absl.propagate or caplog.handler in absl.handlers, "absl's warnings would not be seen here"
    with caplog.at_level(logging.WARNING):
        with Checkpoints(tmp_path, create=True) as checkpoints:
            for step, metrics in enumerate([{"top1": 0.2}, None, {"top1": 0.3}], start=1):
                checkpoints.save(make_state(step), META, metrics)
            checkpoints.wait()
        with Checkpoints(tmp_path, create=True) as checkpoints:
            checkpoints.restore(checkpoints.find("last"), make_state(0), mesh_of(*EIGHT))
            checkpoints.save(make_state(4), META, {"top1": 0.1})
            checkpoints.wait()
        with Checkpoints(tmp_path) as checkpoints:
            step = checkpoints.find("best")
            checkpoints.restore_meta(step)
            checkpoints.restore_variables(step, make_state(0).variables, mesh_of(*ONE), ema=True)
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert not said, f"warnings in the normal path: {said}"
    assert capfd.readouterr() == ("", ""), "something is printed in the normal path"
