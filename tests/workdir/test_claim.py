"""Workdirs: one job at a time, whatever becomes of it, on disks and remote storage; files whole, or as before."""

import json
import os
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
from stce_jax.workdir.metrics import MetricsLog


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


def test_a_claim_ends_with_its_block(tmp_path):
    with pytest.raises(ZeroDivisionError), Claim(tmp_path):
        raise ZeroDivisionError
    with Claim(tmp_path) as claim:
        claim.check()


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


def test_an_owner_killed_on_this_machine_is_noticed_at_once(bucket, monkeypatch):
    monkeypatch.setattr(workdir, "PATIENCE", 60.0)
    left_by({"host": "here", "pid": 2**22, "started": "", "processes": workdir._process_namespace()}, bucket)
    start = time.monotonic()
    with Claim("gs://bucket/run"):
        pass
    assert time.monotonic() - start < 5


@pytest.mark.slow
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
