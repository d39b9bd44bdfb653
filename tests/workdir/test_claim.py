"""Workdirs: one job at a time, whatever becomes of it, on disks and remote storage; files whole, or as before."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import standin_storage

from stce_jax import paths
from stce_jax.errors import ConfigError
from stce_jax.workdir import claim as workdir
from stce_jax.workdir.claim import Claim, LostClaimError
from stce_jax.workdir.metrics import MetricsLog, read_metrics

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
    child = os.fork()
    if not child:
        os.close(1)
        time.sleep(100)
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


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """The local directory that stands for gs://bucket, with quick constants."""
    standin_storage.install(monkeypatch, tmp_path)
    monkeypatch.setattr(workdir, "BEAT", 0.05)
    monkeypatch.setattr(workdir, "PATIENCE", 1.0)
    monkeypatch.setattr(workdir, "SETTLE", 0.1)
    return tmp_path / "bucket"


def refusal(directory):
    with pytest.raises(ConfigError) as caught, Claim(directory):
        pass
    message = str(caught.value)
    assert "\n" not in message, f"not one line: {message!r}"
    return message


def left_by(owner, bucket):
    """A lock object that nobody rewrites any more."""
    (bucket / "run").mkdir(parents=True)
    (bucket / "run" / "lock").write_text(json.dumps({"token": "other", "beat": 1.0} | owner))


# --- a local workdir


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_a_claim_ends_with_its_block(tmp_path):
    with pytest.raises(ZeroDivisionError), Claim(tmp_path):
        raise ZeroDivisionError
    with Claim(tmp_path) as claim:
        claim.check()


@pytest.mark.slow
def test_a_workdir_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    message = refusal(tmp_path / "file" / "run")
    assert message.startswith(f"cannot write to workdir {tmp_path}/file/run: Not a directory"), message
    command = [sys.executable, "-c", CLAIM_WITHOUT_ROOM, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert f"ConfigError: cannot write to workdir {tmp_path}/run: File too large" in done.stderr.splitlines()[-1]


# --- a remote workdir


def test_a_remote_workdir_in_use_is_refused_and_free_afterwards(bucket, capsys):
    with Claim("gs://bucket/run"):
        assert f"in use by process {os.getpid()} on {os.uname().nodename}" in refusal("gs://bucket/run")
    assert "watching for 1 s" in capsys.readouterr().out, "it waits without a word"
    assert not (bucket / "run" / "lock").exists(), "the claim is left behind"
    start = time.monotonic()
    with Claim("gs://bucket/run"):
        pass
    assert time.monotonic() - start < 0.9, "it waited, though the last job had ended"


@pytest.mark.slow
def test_an_owner_killed_on_this_machine_is_noticed_at_once(bucket, monkeypatch):
    monkeypatch.setattr(workdir, "PATIENCE", 60.0)
    process = subprocess.Popen(["true"])
    process.wait()
    left_by({"host": "here", "pid": process.pid, "started": "", "processes": workdir._process_namespace()}, bucket)
    start = time.monotonic()
    with Claim("gs://bucket/run"):
        pass
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "owner",
    [
        {"host": "elsewhere", "pid": 2**22, "started": "2020", "processes": "another machine's"},
        {"host": "here", "pid": os.getpid(), "started": "2020", "processes": workdir._process_namespace()},
        {},
    ],
    ids=["another machine", "a number that is another process's by now", "no lock of ours"],
)
def test_an_owner_without_a_sign_of_life_is_waited_for_and_replaced(bucket, owner):
    left_by(owner, bucket)
    start = time.monotonic()
    with Claim("gs://bucket/run"):
        assert time.monotonic() - start > 1.0, "it did not wait"


def test_of_jobs_that_come_at_once_one_wins(bucket, monkeypatch):
    monkeypatch.setattr(workdir, "SETTLE", 0.5)
    gate, over, won, refused = threading.Barrier(6), threading.Event(), [], []

    def come():
        gate.wait()
        try:
            with Claim("gs://bucket/run") as claim:
                won.append(claim)
                over.wait(30)
        except ConfigError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=come) for _ in range(6)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while len(won) + len(refused) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    over.set()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 5), refused
    assert not won[0].lost


def test_a_job_whose_workdir_was_taken_stops_and_leaves_it_alone(bucket):
    """As one does that was asleep for longer than the others' patience."""
    lock = bucket / "run" / "lock"
    with pytest.raises(LostClaimError, match="another job has taken workdir gs://bucket/run"):  # noqa: SIM117
        with Claim("gs://bucket/run") as claim, MetricsLog("gs://bucket/run", after_step=0) as log:
            log.write(step=1, epoch=0.1, split="train", loss=1.0)
            log.flush()
            lock.write_text(json.dumps({"token": "other"}))
            (bucket / "run" / "metrics.jsonl").write_text("the other job's")
            deadline = time.monotonic() + 20
            while not claim.lost and time.monotonic() < deadline:
                time.sleep(0.01)
            claim.check()
    assert json.loads(lock.read_text()) == {"token": "other"}, "it took the lock of the other job with it"
    assert (bucket / "run" / "metrics.jsonl").read_text() == "the other job's"


def test_a_storage_that_fails_for_a_while_costs_no_claim(bucket, monkeypatch, capsys):
    with Claim("gs://bucket/run") as claim, monkeypatch.context() as broken:

        def fail(self, path, mode):
            raise ConnectionError("the network is down")

        broken.setattr(standin_storage.Storage, "open", fail)
        said = ""
        while "the network is down; trying again" not in said:
            said += capsys.readouterr().out
            time.sleep(0.01)
        broken.undo()
        before = json.loads((bucket / "run" / "lock").read_text())["beat"]
        while json.loads((bucket / "run" / "lock").read_text())["beat"] == before:
            time.sleep(0.01)
        claim.check()


def test_storage_that_orbax_cannot_write_is_refused():
    assert "Orbax writes checkpoints to local paths and gs:// only" in refusal("s3://bucket/run")


# --- paths


def test_local_paths_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert str(paths.open_path("runs/x")) == f"{tmp_path}/runs/x"
    assert str(paths.open_path(Path("~") / "x")) == f"{tmp_path}/home/x"
    assert str(paths.open_path(tmp_path / "x" / ".." / "y")) == os.path.realpath(tmp_path / "y")


def test_remote_paths_stay_as_they_are(bucket):
    path = paths.open_path("gs://bucket/a/b") / "c"
    assert str(path) == "gs://bucket/a/b/c" and paths.is_remote(path) and paths.open_path(path) == path
    assert not paths.is_remote("/gs:/bucket") and not paths.is_remote(Path("a://b")) and not paths.is_remote("C:/x")


def test_paths_that_nothing_opens_are_refused_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as where it is not installed
    for path, cause in (("gs://bucket/run", "install gcsfs"), ("ftp://host/run", "nothing reads 'ftp://'")):
        with pytest.raises(ConfigError, match=cause) as caught:
            paths.open_path(path)
        assert "\n" not in str(caught.value) and path in str(caught.value)


@pytest.mark.slow
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
