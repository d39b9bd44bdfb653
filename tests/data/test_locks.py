"""Locks on files: one holder at a time, also within a process."""

import threading

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
