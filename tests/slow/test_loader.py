"""The loader's worker processes: the same batches as without them, and what becomes of them."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pictures import (
    DamagedSource,
    assert_equal,
    feeder,
    train,
    undisturbed,
)

from stce_jax.errors import DataError


@pytest.mark.parametrize("workers", [1, 5])  # of a batch of four
def test_the_number_of_worker_processes_changes_nothing(workers):
    expected = {name: values[3:9] for name, values in undisturbed().items()}
    assert_equal(train(6, position=12, workers=workers), expected, f"{workers} workers from step 3 on")


def test_a_damaged_image_ends_training_by_name_from_a_worker_process():
    with pytest.raises(DataError, match=r"picture 7\b"):
        train(3, source=DamagedSource(), workers=2)


def test_a_worker_that_dies_before_it_was_looked_at_is_reported():
    with feeder(workers=1) as batches:
        while not loader_processes():
            time.sleep(0.01)
        os.kill(loader_processes()[0].pid, signal.SIGKILL)
        with pytest.raises(DataError, match="loader process"):
            next(batches)


def test_loaders_leave_each_other_s_workers_alone():
    with feeder(workers=1) as first:
        expected = next(first)
        with feeder(workers=1) as second:
            assert_equal(next(second), expected, "the second loader")
        for _ in range(10):
            next(first)
        assert len(loader_processes()) == 1


def test_a_stuck_worker_process_is_reported():
    with feeder(workers=2) as batches:
        next(batches)
        for worker in loader_processes():
            os.kill(worker.pid, signal.SIGSTOP)
        batches._timeout = 1.0
        start = time.monotonic()
        with pytest.raises(DataError, match="no data came for"):
            for _ in range(20):
                next(batches)
        assert time.monotonic() - start < 20
    assert not loader_processes()


def test_a_killed_worker_process_is_reported():
    with feeder(workers=2) as batches:
        next(batches)
        victim = loader_processes()[0].pid
        os.kill(victim, signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(DataError, match=f"loader process {victim} was killed by signal 9"):
            for _ in range(20):
                next(batches)
        assert time.monotonic() - start < 20
    assert not loader_processes()


def loader_processes():
    return [child for child in multiprocessing.active_children() if child.name.startswith("grain")]


PARENT = """
import multiprocessing, time
from pictures import feeder

if __name__ == "__main__":
    batches = feeder(workers=2)
    next(batches)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(100)
"""


def shared_memory():
    """Names of Python's shared memory."""
    return {name for name in os.listdir("/dev/shm") if name.startswith("psm_")}


@pytest.mark.parametrize("number, group", [(signal.SIGKILL, False), (signal.SIGTERM, False), (signal.SIGKILL, True)])
def test_a_killed_run_leaves_no_process_and_no_shared_memory(number, group, tmp_path):
    """Killed alone, or with all of its group, so that nobody is left to clean up."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    here = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
    before = shared_memory()
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as parent:
        children = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(children) == 2
        if group:
            os.killpg(parent.pid, number)
        else:
            parent.send_signal(number)
    deadline = time.monotonic() + 20
    while left := [pid for pid in children if Path(f"/proc/{pid}").exists()] + sorted(shared_memory() - before):
        assert time.monotonic() < deadline, f"left: {left}"
        time.sleep(0.1)
