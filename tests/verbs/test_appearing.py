"""Directories that appear whole or not at all, while threads of a library still write into them."""

import os
import threading
import time

import pytest

from stce_jax.errors import DataError
from stce_jax.verbs.appearing import appearing


def test_what_a_thread_still_writes_is_removed_too(tmp_path):
    failed = threading.Event()

    def write(directory):
        failed.wait()
        for number in range(50):
            try:
                (directory / "more").mkdir(exist_ok=True)
                (directory / "more" / str(number)).write_text("late")
            except FileNotFoundError:
                return  # it is gone, as it should be
            time.sleep(0.002)

    with pytest.raises(DataError), appearing(tmp_path / "out") as directory:
        thread = threading.Thread(target=write, args=(directory,))
        thread.start()
        (directory / "weights").write_text("whole")
        failed.set()
        raise DataError("the disk is full")
    thread.join()
    assert os.listdir(tmp_path) == [], "something was left"
