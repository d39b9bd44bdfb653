"""Copies of a remote data_dir, here from and to a local folder; over a network in tests/slow/test_remote.py."""

import pytest
from etils import epath

from stce_jax.data import mirror
from stce_jax.errors import DataError


@pytest.fixture
def remote(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return epath.Path(tmp_path / "remote")


def test_a_part_is_copied_once_and_what_is_gone_there_goes_here(remote):
    (remote / "set" / "inner").mkdir(parents=True)
    (remote / "set" / "a.txt").write_text("one")
    (remote / "set" / "inner" / "b.txt").write_text("two")
    copy = mirror.local_copy(remote, "set")
    assert copy == mirror.local_root(remote) / "set" and (copy / "inner" / "b.txt").read_text() == "two"
    (remote / "set" / "a.txt").unlink()
    written = (copy / "inner" / "b.txt").stat().st_mtime_ns
    mirror.local_copy(remote, "set")
    assert not (copy / "a.txt").exists() and (copy / "inner" / "b.txt").stat().st_mtime_ns == written


def test_what_is_uploaded_is_there_and_stays_as_the_copy(remote, tmp_path):
    local = tmp_path / "cache" / "made"
    local.mkdir(parents=True)
    (remote / "set").mkdir(parents=True)  # a storage of objects has no folders
    (local / "data").write_text("images")
    (local / "info.json").write_text("{}")
    mirror.upload(remote, "set", local, "info.json")
    assert (remote / "set" / "data").read_text() == "images" and not local.exists()
    assert (mirror.local_copy(remote, "set") / "info.json").read_text() == "{}"


def test_nothing_to_copy_is_refused(remote):
    remote.mkdir()
    with pytest.raises(DataError, match=r"there is nothing in .*; give another --data_dir"):
        mirror.local_copy(remote, "set")
