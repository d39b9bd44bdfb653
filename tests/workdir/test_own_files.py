"""Locks, logs and temporary files: no link is followed, no file of the user's is emptied, no two writers mix."""

import errno
import os
import threading

import pytest
from helpers import TINY, run_cli

from stce_jax import paths
from stce_jax.commands import common
from stce_jax.data import locks, mirror
from stce_jax.errors import ConfigError
from stce_jax.reproduce.subprocesses import run_command
from stce_jax.workdir.claim import Claim


@pytest.fixture
def victim(tmp_path):
    """A file of the user's, which must stay as it is."""
    path = tmp_path / "victim"
    path.write_text("precious")
    yield path
    assert path.read_text() == "precious", "a file of the user's was changed"


def symbolic(victim, path):
    path.symlink_to(victim)


def hard(victim, path):
    os.link(victim, path)


def own(victim, path):
    path.write_text(victim.read_text())


@pytest.mark.parametrize("put", [symbolic, hard, own])
def test_what_lies_in_the_place_of_a_workdirs_lock(capsys, victim, tmp_path, data_dir, put):
    workdir = tmp_path / "run"
    workdir.mkdir()
    put(victim, workdir / "lock")
    code, _, error = run_cli(capsys, "train", *TINY, f"--workdir={workdir}", f"--data_dir={data_dir}")
    assert (code, error.count("\n")) == (2, 1) and "lock is" in error, error
    assert (workdir / "lock").read_text() == "precious" and os.listdir(workdir) == ["lock"]


def test_a_lock_that_a_killed_process_left_is_taken(tmp_path):
    for left in ("", '{"host": "elsewhere", "pid": 1}', '{"ho'):
        (tmp_path / "lock").write_text(left)
        with Claim(tmp_path):
            pass


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["a pipe", "a directory"])
def test_what_is_no_file_in_the_place_of_a_lock(tmp_path, make):
    make(tmp_path / "lock")
    with pytest.raises(ConfigError, match=r"cannot write to workdir"), Claim(tmp_path):
        pass
    with pytest.raises(OSError), locks.locked(tmp_path / "lock"):
        pass


def test_a_lock_that_is_deleted_while_another_waits_for_it(tmp_path):
    """Who waited must not hold the deleted file while a third takes the new one."""
    path, order = tmp_path / "x.lock", []

    def second():
        with locks.locked(path):
            order.append("second")
            with pytest.raises(BlockingIOError):
                locks.take(path)

    with locks.locked(path):
        thread = threading.Thread(target=second)
        thread.start()
        path.unlink()
        order.append("first")
    thread.join(timeout=20)
    assert order == ["first", "second"] or order == ["second", "first"]


@pytest.mark.parametrize("option", ["--csv", "--json"])
def test_a_users_own_file_called_partial(capsys, victim, tiny_run, tmp_path, option):
    path = victim.rename(tmp_path / "out.partial")
    run_cli(capsys, "predict", os.devnull, f"--workdir={tiny_run[0]}", f"{option}={tmp_path}/out")
    path.rename(victim)
    assert sorted(os.listdir(tmp_path)) == ["out", "victim"]


def test_temporary_names_are_unique_and_no_link_is_followed(victim, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "urandom", lambda size: bytes(size))
    (tmp_path / f".stce-{'00' * 8}.partial").symlink_to(victim)
    with pytest.raises(FileExistsError):
        paths.write_text(tmp_path / "out", "new")
    assert not (tmp_path / "out").exists()


def test_the_target_of_a_write_is_replaced_and_not_followed(victim, tmp_path):
    (tmp_path / "out").symlink_to(victim)
    paths.write_text(tmp_path / "out", "new")
    assert (tmp_path / "out").read_text() == "new" and not (tmp_path / "out").is_symlink()


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    target = tmp_path / "out"
    with paths.whole_file(target) as first, paths.whole_file(target) as second:
        for _ in range(3):
            first.write(b"1" * 10_000)
            second.write(b"2" * 10_000)
    assert target.read_bytes() == b"1" * 30_000 and os.listdir(tmp_path) == ["out"]


def test_what_a_killed_process_left_is_removed_by_the_next_owner(tmp_path):
    (tmp_path / "plots").mkdir()
    for left in (tmp_path / f".stce-{'0a' * 8}.partial", tmp_path / "plots" / f".stce-{'ff' * 8}.partial"):
        left.write_text("half")
    for kept in ("mine.partial", ".stce-mine.partial"):
        (tmp_path / kept).write_text("mine")
    with Claim(tmp_path):
        pass
    assert sorted(os.listdir(tmp_path)) == [".stce-mine.partial", "lock", "mine.partial", "plots"]
    assert not os.listdir(tmp_path / "plots")


def test_a_log_follows_no_link(victim, tmp_path):
    (tmp_path / "log.txt").symlink_to(victim)
    with pytest.raises(OSError, match=r"log\.txt is a link"):
        run_command(["stce", "models"], tmp_path / "log.txt", None)


def test_a_copy_of_remote_data_follows_no_link(victim, tmp_path):
    from etils import epath

    (tmp_path / "source").write_bytes(b"image")
    for name in ("copy", "copy.partial"):
        (tmp_path / name).symlink_to(victim)
    mirror._download(epath.Path(tmp_path / "source"), epath.Path(tmp_path / "copy"), 5)
    assert (tmp_path / "copy").read_bytes() == b"image" and (tmp_path / "copy.partial").is_symlink()
    with pytest.raises(OSError, match="it is being written"):
        mirror._download(epath.Path(tmp_path / "source"), epath.Path(tmp_path / "other"), 6)
    assert not (tmp_path / "other").exists() and not list(tmp_path.glob(".stce*"))


def test_on_a_full_disk_users_are_told_to_make_room():
    full = r"cannot write /dev/full: No space left on device; make room, or give another file"
    with pytest.raises(ConfigError, match=full), common.output_file("/dev/full") as file:
        file.write(b"x")
    for number, words in ((errno.EDQUOT, "; make room, or go"), (errno.EACCES, "; go")):
        with pytest.raises(ConfigError, match=words), paths.named_failures("write it", "go"):
            raise OSError(number, os.strerror(number))
