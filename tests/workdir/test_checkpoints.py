"""Checkpoints: to the bit, onto any devices, the right ones kept, and one line for everything that can go wrong."""

import contextlib
import logging
import os
import pickle
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from etils import epath
from flax import linen as nn

from stce_jax.errors import CheckpointError
from stce_jax.recipe.optimizers import make_optimizer
from stce_jax.recipe.schedules import make_schedule
from stce_jax.training.mesh import batch_sharding, make_mesh, sharded_shapes, state_shardings
from stce_jax.training.state import TrainState, init_state
from stce_jax.training.step import make_train_step, run_key
from stce_jax.workdir import digests
from stce_jax.workdir.checkpoint_writer import CheckpointWriter
from stce_jax.workdir.checkpoints import Checkpoints

META = {"class_names": ["one", "zwei", "três"], "mean": [0.1, 1 / 3, 1e-30], "epoch": 2.5, "nested": {"none": None}}
SCHEDULE = make_schedule(peak=1e-3, warmup_from=1e-6, final=1e-5, warmup_steps=2, total_steps=50)
OPTIMIZER = make_optimizer(SCHEDULE, weight_decay=0.05, beta1=0.9, beta2=0.999, epsilon=1e-8, clip_norm=1.0)
pytestmark = pytest.mark.usefixtures("eight_devices", "everything_is_split")
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
    with CheckpointWriter(directory, keep=2) as checkpoints:
        for step, top1 in enumerate([0.1, 0.9, 0.3, 0.2, 0.5, 0.4], start=1):
            checkpoints.save(make_state(step, seed=step), META | {"epoch": step}, {"top1": top1, "loss": -top1})


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    """A directory in which six steps were saved, evaluated 0.1 0.9 0.3 0.2 0.5 0.4. Tests only read it."""
    directory = tmp_path_factory.mktemp("six") / "checkpoints"
    save_six(directory)
    return directory


# --- round trips


@pytest.mark.slow
@pytest.mark.parametrize("ema", [True, False], ids=["ema", "no ema"])
@pytest.mark.parametrize(
    "source, target", [(EIGHT, EIGHT), (FSDP_8, ONE), (ONE, FSDP_8), (FSDP_8, FSDP_2)], ids=lambda pair: str(pair)
)
def test_a_state_comes_back_bit_for_bit_onto_any_devices(tmp_path, source, target, ema):
    state = make_state(7, topology=source, ema=ema)
    empty = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    with CheckpointWriter(tmp_path, keep=2) as checkpoints:
        checkpoints.save(state, META)
        checkpoints.wait()
        restored = checkpoints.restore(7, sharded_shapes(empty, mesh_of(*target)))
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


@pytest.mark.slow
def test_steps_that_donate_the_saved_state_do_not_reach_into_the_checkpoint(tmp_path):
    """Training goes on while a checkpoint is written, and overwrites the very buffers that were saved."""
    mesh = mesh_of(*FSDP_8)
    state = init_state(Wide(), OPTIMIZER, seed=0, image_size=16, with_ema=True, mesh=mesh)
    train_step = make_train_step(
        Wide(),
        OPTIMIZER,
        lambda key, step, images, labels: (images / 255.0, jax.nn.one_hot(labels, 10)),
        ema_decay=0.9,
        state=state,
        mesh=mesh,
    )
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (8, 16, 16, 3), dtype=np.uint8), "label": np.arange(8, dtype=np.int32)}
    batch, key = jax.device_put(batch, batch_sharding(mesh)), run_key(0, mesh)
    state, _ = train_step(state, batch, key)
    with CheckpointWriter(tmp_path, keep=2) as checkpoints:
        copies = {}
        for _ in range(3):
            copies[int(state.step)] = host(state)
            checkpoints.save(state, META)
            for _ in range(5):
                old, (state, _) = state, train_step(state, batch, key)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old)), "the test's steps must donate their state"
        checkpoints.wait()
        final, steps = host(state), checkpoints.steps()
        assert steps == [6, 11]
        for step in steps:
            restored = checkpoints.restore(step, sharded_shapes(state, mesh))
            assert_same_bits(restored, copies[step])
    for _ in range(5):  # the restored state of step 11 can itself be trained on, and donated, with the same result
        restored, _ = train_step(restored, batch, key)
    assert_same_bits(restored, final)


def test_meta_comes_back_as_it_was(six):
    checkpoints = Checkpoints(six)
    for step in (2, 6):
        meta = checkpoints.restore_meta(step)
        assert meta.pop("metrics")["top1"] == {2: 0.9, 6: 0.4}[step]
        assert meta == META | {"epoch": step}


@pytest.mark.parametrize("ema", [False, True], ids=["variables", "average"])
def test_variables_or_their_average_alone(six, ema):
    state = make_state(5, seed=5)
    checkpoints = Checkpoints(six)
    restored = checkpoints.restore_variables(5, sharded_shapes(state.variables, mesh_of(*EIGHT)), ema=ema)
    assert_same_bits(restored, host(state.ema if ema else state.variables))
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(restored))


# --- which are kept, and found


def test_the_last_two_and_the_best_are_kept(six):
    assert {path.name for path in six.iterdir()} == {"2", "5", "6"}
    checkpoints = Checkpoints(six)
    assert checkpoints.steps() == [2, 5, 6]
    assert checkpoints.find("last") == 6
    assert checkpoints.find("best") == 2
    assert checkpoints.find(5) == checkpoints.find("5") == 5
    assert_same_bits(
        checkpoints.restore(checkpoints.find("best"), sharded_shapes(make_state(0), mesh_of(*ONE))),
        host(make_state(2, seed=2)),
    )


def test_the_best_moves_on_over_a_restart(tmp_path):
    """Each save by a process of its own, as it were: what was best before is known from the disk."""
    kept = {1: [1], 2: [1, 2], 3: [2, 3], 4: [2, 3, 4], 5: [4, 5], 6: [5, 6]}
    for step, top1 in enumerate([0.1, 0.6, 0.3, 0.2, 0.7, 0.4], start=1):
        with CheckpointWriter(tmp_path, keep=2) as checkpoints:
            checkpoints.save(make_state(step, ema=False), META, {"top1": top1})
            checkpoints.wait()
            assert checkpoints.steps() == kept[step], f"kept after the save of step {step}"
            assert checkpoints.find("best") == (1 if step < 2 else 2 if step < 5 else 5)


@pytest.mark.parametrize("which", ["7", 7, 1, "1", "0", "-6", "6.0", "latest", "", None], ids=repr)
def test_what_is_not_there_is_refused_naming_what_is(six, which):
    checkpoints = Checkpoints(six)
    with pytest.raises(CheckpointError) as error:
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
    checkpoints = Checkpoints(directory)
    assert checkpoints.steps() == []
    with pytest.raises(CheckpointError, match=r"there is no checkpoint in .*none; train first"):
        checkpoints.find(which)
    assert directory.exists() == exists, "looking must not make a directory"


def test_saves_without_metrics_are_never_the_best(tmp_path):
    """Such as those made when a run is stopped between two evaluations."""
    with CheckpointWriter(tmp_path, keep=2) as checkpoints:
        checkpoints.save(make_state(1, ema=False), META)
        checkpoints.wait()
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


def test_the_same_step_again_replaces_the_first(tmp_path):
    """As after an evaluation that a stop had kept from taking place."""
    with CheckpointWriter(tmp_path, keep=2) as checkpoints:
        checkpoints.save(make_state(3, seed=1), META)
        checkpoints.save(make_state(3, seed=2), META, {"top1": 0.5})
        checkpoints.wait()
        assert checkpoints.find("best") == 3
        assert_same_bits(
            checkpoints.restore(3, sharded_shapes(make_state(0), mesh_of(*ONE))), host(make_state(3, seed=2))
        )
        assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_an_average_that_was_not_kept_is_said_to_be_missing(tmp_path):
    state = make_state(4, ema=False)
    with CheckpointWriter(tmp_path, keep=2) as checkpoints:
        checkpoints.save(state, META)
        checkpoints.wait()
        with pytest.raises(CheckpointError) as error:
            checkpoints.restore_variables(4, sharded_shapes(state.variables, mesh_of(*ONE)), ema=True)
        one_line(error, "checkpoint 4", "moving average", "ema_decay was 0")
        with pytest.raises(CheckpointError) as error:
            checkpoints.restore(4, sharded_shapes(make_state(0, ema=True), mesh_of(*ONE)))
        one_line(error, "checkpoint 4", "ema")


def files_of(step):
    return sorted(path for path in step.rglob("*") if path.is_file())


def flip(path, place, bit):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.slow
def test_a_flipped_bit_in_any_file_is_found_and_named(six):
    """One bit of each file, drawn at random; and each bit of the file of digests' first line."""
    rng = np.random.default_rng(0)
    step = six / "6"
    assert len(files_of(step)) > 10 and digests.find_damage(epath.Path(step)) is None
    for path in files_of(step):
        size = path.stat().st_size
        flips = [(rng.integers(size), rng.integers(8))] if path.name != "SHA256SUMS" else np.ndindex(70, 8)
        if not size:
            continue
        for place, bit in flips:
            flip(path, place, bit)
            damage = digests.find_damage(epath.Path(step))
            flip(path, place, bit)
            assert damage, f"bit {bit} of byte {place} of {path} flipped, and nothing was found"
            assert path.name in damage or path.name == "SHA256SUMS", f"{path} is damaged, but {damage!r} is said"
    assert digests.find_damage(epath.Path(step)) is None


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cut short", "empty", "missing", "too much"])
def test_files_that_are_not_whole_are_found_and_named(six, tmp_path, how):
    for number, original in enumerate(files_of(six / "6")):
        step = shutil.copytree(six / "6", tmp_path / str(number))
        path = step / original.relative_to(six / "6")
        content = path.read_bytes()
        if how == "missing":
            path.unlink()
        elif how == "too much":
            path = path.with_name("another")
            path.write_bytes(content)
        elif not content:
            continue
        else:
            path.write_bytes(content[: -max(1, len(content) // 2)] if how == "cut short" else b"")
        damage = digests.find_damage(epath.Path(step))
        assert damage and path.name in damage, f"{path} is {how}, but {damage!r} is said"


def damage_arrays(directory, step):
    path = max(files_of(directory / str(step) / "variables"), key=lambda path: path.stat().st_size)
    flip(path, path.stat().st_size // 2, 3)
    return path


def test_reading_falls_back_to_the_newest_whole_step_and_says_so(six, tmp_path, capfd):
    directory = shutil.copytree(six, tmp_path / "copy")
    checkpoints = Checkpoints(directory)
    damaged = damage_arrays(directory, 6)
    assert checkpoints.find("last") == 5
    said = capfd.readouterr().err
    assert said.startswith("stce: checkpoint 6 in ") and damaged.name in said and said.endswith("using checkpoint 5\n")
    with pytest.raises(CheckpointError) as error:
        checkpoints.find(6)
    one_line(error, "checkpoint 6", damaged.name, "use another one")
    damage_arrays(directory, 2)
    with pytest.raises(CheckpointError) as error:
        checkpoints.find("best")
    one_line(error, "checkpoint 2", "is damaged")
    assert {path.name for path in directory.iterdir()} == {"2", "5", "6"}, "reading must change nothing"


def test_a_step_that_a_running_job_deletes_meanwhile_is_no_damage(six, tmp_path, monkeypatch, capfd):
    directory = shutil.copytree(six, tmp_path / "copy")
    look, looked = digests.find_damage, []

    def look_late(path):
        looked.append(path.name)
        if path.name == "6":
            shutil.rmtree(path)
        return look(path) if path.exists() else "meta.json is missing"

    monkeypatch.setattr(digests, "find_damage", look_late)
    assert Checkpoints(directory).find("last") == 5
    assert looked == ["6", "5"] and capfd.readouterr() == ("", "")


def test_training_sets_damaged_steps_aside(six, tmp_path, capfd):
    directory = shutil.copytree(six, tmp_path / "copy")
    damage_arrays(directory, 6)
    (directory / "2" / "meta.json").write_text("")
    with CheckpointWriter(directory, keep=2) as checkpoints:
        assert checkpoints.recover() == 5
        said = capfd.readouterr().err
        assert "checkpoint 6 in " in said and "it is called 6.damaged now; resuming from 5" in said
        assert "checkpoint 2 in " in said and "meta.json is damaged" in said
        checkpoints.save(make_state(6, seed=9), META)
        checkpoints.wait()
        assert checkpoints.steps() == [5, 6]
        assert_same_bits(
            checkpoints.restore(6, sharded_shapes(make_state(0), mesh_of(*ONE))), host(make_state(6, seed=9))
        )
    damage_arrays(directory, 6)
    with CheckpointWriter(directory, keep=2) as checkpoints:
        assert checkpoints.recover() == 5
    assert {path.name for path in directory.iterdir()} == {"2.damaged", "5", "6.damaged", "6.damaged.2"}


def test_without_a_whole_step_nothing_begins_anew(six, tmp_path, capfd):
    """Not now, and not the next time; nothing is renamed, so that a copy can be put back."""
    directory = shutil.copytree(six, tmp_path / "copy")
    for step in (2, 5, 6):
        damage_arrays(directory, step)
    for _ in range(2):
        with CheckpointWriter(directory, keep=2) as checkpoints, pytest.raises(CheckpointError) as error:
            checkpoints.recover()
        one_line(error, "no checkpoint in", "is whole (2: ", "put a copy back")
    with pytest.raises(CheckpointError):
        Checkpoints(directory).find("last")
    for step in (2, 5, 6):
        (directory / str(step)).rename(directory / f"{step}.damaged")
    with CheckpointWriter(directory, keep=2) as checkpoints, pytest.raises(CheckpointError) as error:
        checkpoints.recover()
    one_line(error, "all were set aside as damaged")


def test_what_a_killed_process_left_unfinished_is_removed(six, tmp_path):
    directory = shutil.copytree(six, tmp_path / "copy")
    for name in ("7.unsealed", "8.unsealed.orbax-checkpoint-tmp", "4.deleting", "6.unsealed", "5.deleting"):
        shutil.copytree(directory / "6", directory / name)
    for name in ("7.unsealed", "4.deleting"):
        (directory / name / "meta.json").unlink()
    assert Checkpoints(directory).find("last") == 6
    with CheckpointWriter(directory, keep=2) as checkpoints:
        assert checkpoints.recover() == 6
    assert {path.name for path in directory.iterdir()} == {"2", "5", "6"}


@pytest.mark.parametrize("left", ["6.unsealed", "6.deleting"])
def test_a_whole_step_without_its_name_gets_it(six, tmp_path, left):
    """A process was killed after it had sealed a step, or while that took the place of an older one."""
    directory = shutil.copytree(six, tmp_path / "copy")
    for step in (2, 5):
        shutil.rmtree(directory / str(step))
    (directory / "6").rename(directory / left)
    with CheckpointWriter(directory, keep=2) as checkpoints:
        assert checkpoints.recover() == 6
    assert {path.name for path in directory.iterdir()} == {"6"}


def test_going_back_skips_steps_that_were_saved_because_of_a_stop(tmp_path):
    with CheckpointWriter(tmp_path, keep=1) as checkpoints:
        checkpoints.scheduled = lambda step: step % 3 == 0
        for step in (3, 4, 5):
            checkpoints.save(make_state(step, ema=False), META)
            checkpoints.wait()
        assert checkpoints.steps() == [3, 5], "the last one and the last on schedule"
        assert checkpoints.recover() == 5
        assert checkpoints.recover(scheduled=True) == 3
        assert checkpoints.steps() == [3]


# --- optimizers with other parts

OPTIONS = {"weight_decay": 0.05, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
OTHERS = {
    "no clipping": make_optimizer(SCHEDULE, **OPTIONS, clip_norm=0.0),
    "no weight decay": make_optimizer(SCHEDULE, **OPTIONS | {"weight_decay": 0.0}, clip_norm=1.0),
    "another schedule": make_optimizer(lambda step: 1e-4 + 0 * step, **OPTIONS, clip_norm=2.0),
    "deeper in a chain": optax.chain(optax.identity(), optax.chain(OPTIMIZER), optax.identity()),
}


@pytest.fixture(scope="module")
def clipped(tmp_path_factory):
    """A step of an optimizer that clips; tests only read it."""
    directory = tmp_path_factory.mktemp("clipped") / "checkpoints"
    with CheckpointWriter(directory, keep=2) as checkpoints:
        checkpoints.save(make_state(4, ema=False), META)
    return directory


def with_optimizer(state, optimizer):
    blank = jax.eval_shape(optimizer.init, state.variables["params"])
    return sharded_shapes(state.replace(optimizer=blank), mesh_of(*ONE))


@pytest.mark.parametrize("name", OTHERS)
def test_an_optimizer_with_other_parts_takes_over_the_state_of_those_that_have_one(clipped, name):
    state = make_state(4, ema=False)
    restored = Checkpoints(clipped).restore(4, with_optimizer(state, OTHERS[name]))
    assert jax.tree.structure(restored.optimizer) == jax.tree.structure(OTHERS[name].init(state.variables["params"]))
    for left, right in zip(jax.tree.leaves(restored.optimizer), jax.tree.leaves(state.optimizer), strict=True):
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()
    OTHERS[name].update(state.variables["params"], restored.optimizer, state.variables["params"])  # it is usable


@pytest.mark.parametrize(
    "optimizer, difference",
    [
        (optax.lion(SCHEDULE), "state/nu/class_token is in it"),
        (optax.sgd(SCHEDULE, momentum=0.9), "state/trace/class_token is not in it"),
        (optax.adamw(1e-3), "state/count is in it"),  # the schedule's
    ],
)
def test_an_optimizer_whose_parts_have_another_state_is_refused_by_its_options(clipped, optimizer, difference):
    with pytest.raises(CheckpointError) as error:
        blank = with_optimizer(make_state(4, ema=False), optimizer)
        Checkpoints(clipped).restore(4, blank, changed="name: adamw -> mine")
    assert str(error.value) == (
        f"checkpoint 4 in {clipped} holds the state of another optimizer: {difference}; give the --config.optimizer "
        "options it was trained with (name: adamw -> mine), or begin a new run with its weights: another --workdir, "
        f"--init_from={clipped.parent}"
    )


def test_an_average_that_was_not_kept_is_refused_by_its_option(clipped):
    with pytest.raises(
        CheckpointError, match=r"--config\.optimizer\.ema_decay=0 --config\.optimizer\.ema_share=0, or begin"
    ):
        Checkpoints(clipped).restore(4, sharded_shapes(make_state(4), mesh_of(*ONE)))


class Malice:
    """Leaves a trace if it is unpickled."""

    def __reduce__(self):
        return open, (os.environ["STCE_TEST_TRACE"], "w")


@pytest.mark.slow
def test_restoring_never_unpickles(six, tmp_path, monkeypatch):
    """Neither while a good step is restored, nor where a pickle lies in the place of a file of ours."""
    monkeypatch.setenv("STCE_TEST_TRACE", str(tmp_path / "trace"))
    poison = pickle.dumps(Malice())
    for original in files_of(six / "6"):
        directory = shutil.copytree(six, tmp_path / "copy", dirs_exist_ok=True)
        (directory / "6" / original.relative_to(six / "6")).write_bytes(poison)
        digests.write_digests(epath.Path(directory / "6"))  # a mischief-maker who knows how
        with contextlib.suppress(CheckpointError):
            checkpoints = Checkpoints(directory)
            checkpoints.restore_meta(checkpoints.find(6))
            checkpoints.restore(6, sharded_shapes(make_state(0), mesh_of(*ONE)))
        assert not (tmp_path / "trace").exists(), f"{original} was unpickled"
        shutil.rmtree(directory)
    pickle.loads(poison).close()
    assert (tmp_path / "trace").exists(), "the poison of this test does not work"


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
    checkpoints = Checkpoints(six)
    with pytest.raises(CheckpointError) as error:
        checkpoints.restore_variables(6, sharded_shapes(variables, mesh_of(*ONE)))
    one_line(error, "checkpoint 6")


def test_a_full_disk_is_said_and_the_last_step_stays(small_disk):
    mesh = mesh_of(*ONE)
    with CheckpointWriter(small_disk / "run", keep=2) as checkpoints:
        checkpoints.save(make_state(1, seed=1), META)
        checkpoints.wait()
        (small_disk / "more").write_bytes(b"x" * (2**21 + 2**19))
        large = make_state(2)
        large = large.replace(variables={"params": {"kernel": np.random.default_rng(0).normal(size=(512, 512))}})
        with pytest.raises(CheckpointError) as error:
            checkpoints.save(large, META)
            for _ in range(300):  # as between steps; the error comes out at the first one after the write has failed
                checkpoints.check()
                time.sleep(0.1)
        assert "cannot write a checkpoint in" in one_line(error, "the last one stays")
    with CheckpointWriter(small_disk / "run", keep=2) as checkpoints:
        assert checkpoints.recover() == 1
        assert_same_bits(checkpoints.restore(1, sharded_shapes(make_state(0), mesh)), host(make_state(1, seed=1)))
        (small_disk / "more").unlink()
        checkpoints.save(make_state(2, seed=2), META)
    assert Checkpoints(small_disk / "run").steps() == [1, 2]


FULL_DISK = ValueError("RESOURCE_EXHAUSTED: No space left on device [os_error_code='28']\nmore\nand more")


@pytest.mark.parametrize("error", [FULL_DISK, OSError(30, "Read-only file system")], ids=["full", "read-only"])
@pytest.mark.parametrize("method", ["save", "wait_until_finished"])
@pytest.mark.parametrize("when", ["check", "wait", "save", "close"])
def test_a_failed_write_is_one_line_whenever_it_comes_out(tmp_path, monkeypatch, method, error, when):
    """Orbax writes in the background: it may raise at once, or be heard of at the next opportunity."""

    def fail(*_, **__):
        raise error

    with pytest.raises(CheckpointError) as raised, CheckpointWriter(tmp_path, keep=2) as checkpoints:
        monkeypatch.setattr(ocp.AsyncCheckpointer, method, fail)
        checkpoints.save(make_state(1), META)
        if when == "check":
            checkpoints._sealing.join()
        {"check": checkpoints.check, "wait": checkpoints.wait, "close": bool}.get(
            when, lambda: checkpoints.save(make_state(2), META)
        )()
    one_line(raised, "cannot write", str(tmp_path), getattr(error, "strerror", None) or "No space left on device")


def test_the_normal_path_says_nothing(tmp_path, caplog, capfd):
    """Saves with and without metrics, a restart, restores: no warning, and nothing on the terminal."""
    absl = logging.getLogger("absl")
    assert absl.propagate or caplog.handler in absl.handlers, "absl's warnings would not be seen here"
    with caplog.at_level(logging.WARNING):
        with CheckpointWriter(tmp_path, keep=2) as checkpoints:
            for step, metrics in enumerate([{"top1": 0.2}, None, {"top1": 0.3}], start=1):
                checkpoints.save(make_state(step), META, metrics)
            checkpoints.wait()
        with CheckpointWriter(tmp_path, keep=2) as checkpoints:
            checkpoints.restore(checkpoints.find("last"), sharded_shapes(make_state(0), mesh_of(*EIGHT)))
            checkpoints.save(make_state(4), META, {"top1": 0.1})
            checkpoints.wait()
        checkpoints = Checkpoints(tmp_path)
        step = checkpoints.find("best")
        checkpoints.restore_meta(step)
        checkpoints.restore_variables(step, sharded_shapes(make_state(0).variables, mesh_of(*ONE)), ema=True)
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert not said, f"warnings in the normal path: {said}"
    assert capfd.readouterr() == ("", ""), "something is printed in the normal path"
