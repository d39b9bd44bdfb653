"""Locks on files: one holder at a time, also within a process."""

import os
import threading

import pytest

from stce_jax.data.locks import locked


def test_the_second_waits_for_the_first_and_says_so(tmp_path, capsys):
    path, order = tmp_path / "made" / "x.lock", []

    def second():
        with locked(path, "waiting for the first"):
            order.append("second")

    with locked(path, "never printed"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(timeout=0.3)
        assert thread.is_alive(), "the second does not wait"
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "second"]
    assert capsys.readouterr().out == "waiting for the first\n"


def test_an_error_releases_the_lock(tmp_path):
    for _ in range(2):
        try:
            with locked(tmp_path / "x.lock"):
                raise ValueError
        except ValueError:
            pass


@pytest.mark.parametrize("kind", ["link", "dead link", "pipe", "folder"])
def test_what_lies_in_the_place_of_a_lock_is_left_alone(tmp_path, kind):
    own, path = tmp_path / "own", tmp_path / "x.lock"
    own.write_text("the user's")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(own if kind == "link" else tmp_path / "none")
    with pytest.raises(OSError, match=r"x\.lock is a link|x\.lock is no regular file|directory"), locked(path):
        pass
    assert own.read_text() == "the user's" and not (tmp_path / "none").exists()


def test_a_lock_empties_no_file(tmp_path):
    (tmp_path / "x.lock").write_text("the user's")
    with locked(tmp_path / "x.lock"):
        pass
    assert (tmp_path / "x.lock").read_text() == "the user's"
