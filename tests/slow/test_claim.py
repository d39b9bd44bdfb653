"""A workdir's owner in a process of its own: killed, with children, without room."""

import os
import signal
import subprocess
import sys

import pytest

from stce_jax import paths
from stce_jax.errors import ConfigError
from stce_jax.workdir.claim import Claim
from stce_jax.workdir.metric_lines import read_metrics

HOLD = """
import sys, time
from stce_jax.workdir.claim import Claim
with Claim(sys.argv[1]):
    print("claimed", flush=True)
    time.sleep(100)
"""
# Leaves behind, as it is killed, one child made by fork and one by fork and exec.
HOLD_WITH_CHILDREN = """
import os, subprocess, sys, time
from stce_jax.workdir.claim import Claim
with Claim(sys.argv[1]):
    other = subprocess.Popen(["sleep", "100"], stdout=subprocess.DEVNULL)
    begun, begins = os.pipe()
    child = os.fork()
    if not child:
        os.close(1)
        os.write(begins, b".")  # what fork has to do in the child is done
        time.sleep(100)
    os.read(begun, 1)
    print("claimed", child, other.pid, flush=True)
    time.sleep(100)
"""
CLAIM_WITHOUT_ROOM = """
import resource, sys
from stce_jax.workdir.claim import Claim
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
with Claim(sys.argv[1]):
    pass
"""


@pytest.fixture
def holding():
    """Starts a process that claims a workdir; returns (process, the words it said)."""
    started = []

    def start(directory, program=HOLD):
        process = subprocess.Popen([sys.executable, "-c", program, str(directory)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        words = process.stdout.readline().split()
        assert words[:1] == ["claimed"], "the process did not get the workdir"
        return process, words

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def refusal(directory):
    with pytest.raises(ConfigError) as caught, Claim(directory):
        pass
    message = str(caught.value)
    assert "\n" not in message, f"not one line: {message!r}"
    return message


# --- a local workdir


def test_a_workdir_in_use_is_refused_until_its_owner_dies(tmp_path, holding):
    process, _ = holding(tmp_path / "new" / "run")
    message = refusal(tmp_path / "new" / "run")
    assert f"in use by process {process.pid} on {os.uname().nodename}, running since 2" in message, message
    assert "wait for it, stop it, or give another --workdir" in message
    process.send_signal(signal.SIGSTOP)
    refusal(tmp_path / "new" / "run")
    process.kill()
    process.wait()
    with Claim(tmp_path / "new" / "run"):
        assert str(os.getpid()) in refusal(tmp_path / "new" / "run"), "it names the job that is dead"


def test_children_do_not_inherit_a_claim(tmp_path, holding):
    """Or a worker process that outlives its parent would keep everybody out."""
    process, (_, *children) = holding(tmp_path, HOLD_WITH_CHILDREN)
    refusal(tmp_path)
    process.kill()
    process.wait()
    try:
        with Claim(tmp_path):
            for child in children:
                os.kill(int(child), 0)  # raises if it is gone, and the test shows nothing
    finally:
        for child in children:
            os.kill(int(child), signal.SIGKILL)


def test_a_workdir_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    message = refusal(tmp_path / "file" / "run")
    assert message.startswith(f"cannot write to workdir {tmp_path}/file/run: Not a directory"), message
    command = [sys.executable, "-c", CLAIM_WITHOUT_ROOM, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert f"ConfigError: cannot write to workdir {tmp_path}/run: File too large" in done.stderr.splitlines()[-1]


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    program = (
        "import resource, sys; from stce_jax.paths import write_bytes\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); write_bytes(sys.argv[1], bytes(5000))"
    )
    paths.write_text(tmp_path / "config", "before")
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "config"], capture_output=True, text=True)
    assert "OSError" in done.stderr and (tmp_path / "config").read_text() == "before"
    paths.write_text(tmp_path / "config", "after ü")
    assert (tmp_path / "config").read_text(encoding="utf-8") == "after ü"
    assert read_metrics(tmp_path) == []
