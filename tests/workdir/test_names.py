"""Any name that a file system takes, as a workdir's: what is written there can be read, or it is refused before.

And what cannot be read never counts as a checkpoint, whatever the reason.
"""

import contextlib
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import standin_storage
from etils import epath
from helpers import TINY, run_cli

import stce_jax
from stce_jax.data import places
from stce_jax.errors import CheckpointError, ConfigError
from stce_jax.training.state import TrainState
from stce_jax.workdir import checkpoint_writer, checkpoints
from stce_jax.workdir.checkpoint_writer import CheckpointWriter
from stce_jax.workdir.checkpoints import Checkpoints
from stce_jax.workdir.claim import Claim, LostClaimError
from stce_jax.workdir.metrics import MetricsLog

META = {"epoch": 1.0}
# Each means something else to etils' glob, to tensorstore's paths, or to Orbax.
NAMES = ["vit[lr=1e-3]", "a\\b", "what?*", "{a,b}", "logs:/x", "a|b#c?d%41", " ", "ünï", "new\nline", "-rf", "0@3"]


def state_of(step):
    rng = np.random.default_rng(step)
    params = {"kernel": rng.normal(size=(4, 3)).astype(np.float32), "bias": np.float32([np.nan, -0.0, 1])}
    variables = {"params": jax.tree.map(jnp.asarray, params)}
    return TrainState(jnp.int32(step), variables, {"moment": jnp.full((3,), step, jnp.float32)}, None)


def assert_whole(directory, step):
    found = Checkpoints(directory).restore(Checkpoints(directory).find("last"), state_of(0))
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(state_of(step)), strict=True):
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_checkpoints_under_any_name(tmp_path, name):
    directory = tmp_path / name / "checkpoints"
    for step in (1, 2):  # the second as after a restart
        with CheckpointWriter(directory, keep=1) as writer:
            assert writer.recover() == (step - 1 or None)
            writer.save(state_of(step), META)
    assert_whole(directory, 2)
    assert os.listdir(tmp_path) == [name.partition("/")[0]], "something was written beside it"
    assert [path.name for path in directory.iterdir()] == ["2"]


def test_no_descriptor_is_left_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for step in (1, 2, 3):
        with CheckpointWriter(tmp_path / "[0]", keep=1) as writer:
            writer.save(state_of(step), META)
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_a_run_in_a_workdir_called_like_a_pattern(capsys, tiny_run, tmp_path, data_dir):
    """Is resumed and read; the data_dir is called so, too."""
    workdir, data = shutil.copytree(tiny_run[0], tmp_path / "vit[lr=1e-3]"), tmp_path / "data[0]"
    data.symlink_to(data_dir)
    code, output, error = run_cli(capsys, "train", *TINY, f"--data_dir={data}", f"--workdir={workdir}")
    assert code == 0 and "already finished" in output, error
    assert stce_jax.load_run(workdir).step == 90


def test_prepared_data_under_a_name_like_a_pattern(tmp_path):
    """`epath` would take the whole path for a pattern, as it does with gs://."""
    directory = tmp_path / "data[0]" / "imagenet100" / "kaggle-0123" / places.VERSION
    directory.mkdir(parents=True)
    (directory.parents[1] / "incomplete.kaggle" / places.VERSION).mkdir(parents=True)
    assert places.prepared(epath.Path(tmp_path / "data[0]"), "imagenet100") == [epath.Path(directory)]
    assert places.prepared(tmp_path / "data[0]", "folder") == []


def test_data_are_not_prepared_under_a_name_that_is_no_utf_8(capsys, tmp_path):
    words = (
        "prepare",
        "folder",
        f"--source={tmp_path}",
        f"--data_dir={os.fsdecode(os.fsencode(tmp_path) + bytes([255]))}",
    )
    code, _, error = run_cli(capsys, *words)
    assert code == 2 and "in UTF-8" in error and error.count("\n") == 1, error


def test_a_name_that_is_no_utf_8_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="is no UTF-8") as error, Claim(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")):
        pass
    str(error.value).encode()  # can be printed
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["run[0]", "a*", "what?", "a\\b"])
def test_a_remote_name_that_means_a_pattern_is_refused(monkeypatch, tmp_path, name):
    standin_storage.install(monkeypatch, tmp_path)
    with pytest.raises(ConfigError, match="means a pattern"), Claim(f"gs://bucket/{name}"):
        pass
    assert not os.listdir(tmp_path)


# --- what cannot be read does not count


@contextlib.contextmanager
def as_it_is(directory):
    """In place of `plain_path`: libraries get names that they take for patterns."""
    yield directory


def test_a_first_checkpoint_that_cannot_be_read_back_ends_the_run(tmp_path, monkeypatch):
    for module in (checkpoint_writer, checkpoints):
        monkeypatch.setattr(module, "plain_path", as_it_is)
    with pytest.raises(CheckpointError) as error, CheckpointWriter(tmp_path / "[0]", keep=1) as writer:
        writer.save(state_of(1), META)
        writer.wait()
    assert "cannot write a checkpoint in" in str(error.value) and "\n" not in str(error.value)
    assert Checkpoints(tmp_path / "[0]").steps() == []


def test_a_later_checkpoint_that_lacks_a_part_is_read_back_and_refused(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError), CheckpointWriter(tmp_path, keep=2) as writer:
        writer.save(state_of(1), META)
        writer.wait()
        finish = ocp.AsyncCheckpointer.wait_until_finished

        def lose_a_part(self):
            finish(self)
            (tmp_path / "2.unsealed" / "variables" / "manifest.ocdbt").unlink()

        monkeypatch.setattr(ocp.AsyncCheckpointer, "wait_until_finished", lose_a_part)
        writer.save(state_of(2), META)
        writer.wait()
    assert Checkpoints(tmp_path).steps() == [1]
    assert_whole(tmp_path, 1)


def test_only_the_first_checkpoint_is_read_back(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(CheckpointWriter, "_read_back", lambda self, path, shapes: read.append(path.name))
    with CheckpointWriter(tmp_path, keep=2) as writer:
        for step in (1, 2, 3):
            writer.save(state_of(step), META)
    assert read == ["1.unsealed"]


# --- a checkpoint in the place of something else, and a workdir that is gone


@pytest.mark.parametrize("what", ["a file", "a link to nothing", "a link to a folder"])
def test_what_has_the_name_of_a_new_checkpoint_is_set_aside(tmp_path, what):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "precious").write_text("mine")
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    if what == "a file":
        (directory / "3").write_text("mine")
    else:
        (directory / "3").symlink_to(tmp_path / ("theirs" if what.endswith("folder") else "nothing"))
    with CheckpointWriter(directory, keep=1) as writer:
        writer.save(state_of(3), META)
    assert_whole(directory, 3)
    assert {path.name for path in directory.iterdir()} == {"3", "3.damaged"}
    assert (tmp_path / "theirs" / "precious").read_text() == "mine"


def test_an_old_checkpoint_that_is_a_link_is_unlinked_and_not_emptied(tmp_path):
    directory = tmp_path / "checkpoints"
    with CheckpointWriter(directory, keep=1) as writer:
        writer.save(state_of(1), META)
    (directory / "1").rename(tmp_path / "elsewhere")
    (directory / "1").symlink_to(tmp_path / "elsewhere")
    with CheckpointWriter(directory, keep=1) as writer:
        writer.save(state_of(2), META)
    assert [path.name for path in directory.iterdir()] == ["2"] and (tmp_path / "elsewhere" / "meta.json").exists()


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
def test_a_workdir_that_goes_while_a_run_writes_to_it(tmp_path, monkeypatch, how):
    monkeypatch.setattr("stce_jax.workdir.claim.LOOK", 0.0)
    workdir = tmp_path / "run"
    with pytest.raises(LostClaimError, match="was deleted or moved while the run wrote to it"), Claim(workdir) as claim:
        claim.check()
        if how == "deleted":
            (workdir / "lock").unlink()
            workdir.rmdir()
        else:
            workdir.rename(tmp_path / "other")
        if how == "replaced":
            workdir.mkdir()
        claim.check()
    assert list(tmp_path.glob("run/*")) == [] and workdir.exists() == (how == "replaced"), "it was made again"


def test_a_workdir_that_was_deleted_is_noticed_at_the_end_at_the_latest(tmp_path):
    with pytest.raises(LostClaimError), Claim(tmp_path / "run") as claim:
        claim.check()
        (tmp_path / "run").rename(tmp_path / "other")


def test_no_checkpoint_makes_a_deleted_workdir_again(tmp_path):
    writing = CheckpointWriter(tmp_path / "run" / "checkpoints", keep=1)
    with pytest.raises(CheckpointError, match="it was deleted or moved"), writing as writer:
        (tmp_path / "run").rename(tmp_path / "other")
        writer.save(state_of(1), META)
    assert not (tmp_path / "run").exists()


def test_a_deleted_lock_is_made_again_unless_another_job_has_the_workdir(tmp_path, monkeypatch):
    monkeypatch.setattr("stce_jax.workdir.claim.LOOK", 0.0)
    with Claim(tmp_path) as claim:
        (tmp_path / "lock").unlink()
        claim.check()
        with pytest.raises(ConfigError, match="is in use"), Claim(tmp_path):
            pass
        (tmp_path / "lock").unlink()
        with Claim(tmp_path), pytest.raises(LostClaimError, match="the lock was deleted"):
            claim.check()
        claim.check()


@pytest.mark.slow
def test_a_run_whose_workdir_is_deleted(capsys, monkeypatch, tmp_path, data_dir):
    monkeypatch.setattr("stce_jax.workdir.claim.LOOK", 0.0)
    monkeypatch.setattr(MetricsLog, "write", lambda self, **values: shutil.rmtree(tmp_path / "run"))
    code, _, error = run_cli(capsys, "train", *TINY, f"--workdir={tmp_path / 'run'}", f"--data_dir={data_dir}")
    assert code == 2 and error.count("\n") == 1 and "was deleted or moved" in error, error
    assert not (tmp_path / "run").exists(), "it was made again"
