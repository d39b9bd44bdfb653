"""Workdir and data on remote storage, from the command line and in parts, on a stand-in for gs://."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import image_sources
import numpy as np
import pytest
import standin_storage
from etils import epath
from helpers import TINY, leaves, wait_for

from stce_jax.data import catalog, mirror
from stce_jax.errors import ConfigError, DataError
from stce_jax.verbs.prepare import prepare
from stce_jax.workdir import config as configuration
from stce_jax.workdir.metric_lines import read_metrics

NO_ROOM = """
import os, resource, sys
import pytest, standin_storage
from etils import epath
from helpers import TINY, leaves, wait_for
from stce_jax.data import mirror
standin_storage.install(pytest.MonkeyPatch(), os.environ["STCE_STANDIN_STORAGE"])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
mirror.local_copy(epath.Path("gs://bucket/data"), "set")
"""


class Remote:
    """Storage below a local directory, and the `stce` command on it, started in an empty directory."""

    def __init__(self, root):
        self.bucket, self.started_in = root / "storage" / "bucket", root / "started_in"
        self.started_in.mkdir()
        self.environment = os.environ | {
            "JAX_NUM_CPU_DEVICES": "2",
            "STCE_STANDIN_STORAGE": str(root / "storage"),
            "XDG_CACHE_HOME": str(root / "cache"),
            "XDG_DATA_HOME": str(root / "user"),
        }

    def start(self, *words, kill=""):
        command = [sys.executable, standin_storage.__file__, *map(str, words)]
        environment = self.environment | {"STCE_STANDIN_KILL": kill}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=environment, cwd=self.started_in, **pipes)

    def run(self, *words, kill=""):
        """(exit code, output, errors)"""
        process = self.start(*words, kill=kill)
        output, errors = process.communicate(timeout=300)
        return process.returncode, output, errors


@pytest.fixture(scope="module")
def killed_and_resumed(tiny_process_run, data_dir, tmp_path_factory):
    """(Remote, outcome of each of two commands): a tiny run that is killed as it finishes a checkpoint, and goes on.

    It begins with data from the storage, and goes on with the same data from a disk.
    """
    remote = Remote(tmp_path_factory.mktemp("remote"))
    shutil.copytree(data_dir / "digits", remote.bucket / "data" / "digits")
    train = ("train", *TINY, "--workdir=gs://bucket/run")
    killed = remote.run(*train, "--data_dir=gs://bucket/data", kill="checkpoints/90/SHA256SUMS")
    lock = json.loads((remote.bucket / "run" / "lock").read_text())
    resumed = remote.run(*train, f"--data_dir={data_dir}")
    return remote, killed, lock, resumed


@pytest.fixture
def storage(monkeypatch, tmp_path):
    """The stand-in in this process; its attribute `bucket` is the local directory, `opened` the (path, mode) so far."""
    storage = standin_storage.install(monkeypatch, tmp_path / "storage")
    storage.bucket, storage.opened = tmp_path / "storage" / "bucket", []
    storage.bucket.mkdir(parents=True)
    original = storage.open

    def open_recorded(path, mode):
        storage.opened.append((os.fspath(path), mode))
        return original(path, mode)

    storage.open = open_recorded
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "user"))
    return storage


def refusal(function, *arguments, kind=DataError, **options):
    with pytest.raises(kind) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert message and "\n" not in message, f"not one line: {message!r}"
    return message


def contents(source):
    return [(record["label"], record["image"]) for record in (source[index] for index in range(len(source)))]


# --- runs


def test_a_run_killed_on_remote_storage_ends_like_a_local_one(killed_and_resumed, tiny_process_run, monkeypatch):
    remote, (code, output, errors), lock, resumed = killed_and_resumed
    assert code == -signal.SIGKILL, errors
    assert "copying gs://bucket/data/digits/1.0.0 to " in output
    assert lock["host"] == os.uname().nodename, "the process that was killed had not claimed the workdir"
    assert resumed[0] == 0, resumed[2]
    assert "resuming from step 45 of 90" in resumed[1]
    assert "watching" not in resumed[1], "it waited for a process that is dead"
    standin_storage.install(monkeypatch, remote.bucket.parent)
    for expected, actual in zip(leaves(tiny_process_run[0]), leaves("gs://bucket/run"), strict=True):
        np.testing.assert_array_equal(actual, expected)
    of_local, of_remote = read_metrics(tiny_process_run[0]), read_metrics("gs://bucket/run")
    for key in ("step", "split", "loss", "top1", "learning_rate"):
        assert [line.get(key) for line in of_remote] == [line.get(key) for line in of_local], key


def test_a_remote_workdir_holds_what_a_local_one_does(killed_and_resumed, tiny_process_run):
    remote, *_ = killed_and_resumed
    run = remote.bucket / "run"
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"45", "90"}
    assert (run / "plots" / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert len(list(run.glob("events.out.tfevents.*"))) == 2, "one file of TensorBoard's for each process"
    assert {path.name for path in run.iterdir() if "events" not in path.name} == {
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "plots",
    }, "something is left over"
    assert not list(remote.started_in.iterdir()), "a URL was taken for a local path"
    assert not Path(remote.environment["XDG_DATA_HOME"]).exists(), "the digits were made, though they were there"


def test_evaluate_takes_a_remote_workdir(killed_and_resumed):
    remote, *_ = killed_and_resumed
    last = [json.loads(line) for line in (remote.bucket / "run" / "metrics.jsonl").read_text().splitlines()][-1]
    code, output, errors = remote.run("evaluate", "--workdir=gs://bucket/run", "--data_dir=gs://bucket/data")
    assert code == 0, errors
    assert f"step 90  epoch 2.00  360 images  loss {last['loss']:.4f}  top-1 {100 * last['top1']:.2f}%" in output
    code, _, errors = remote.run("evaluate", "--workdir=gs://bucket/none")
    assert code == 2 and "gs://bucket/none is no workdir of a run" in errors and errors.count("\n") == 1, errors


def test_a_second_job_on_a_remote_workdir_in_use_refuses(killed_and_resumed):
    remote, *_ = killed_and_resumed
    words = ("train", *TINY, "--config.epochs=5000", "--workdir=gs://bucket/long", "--data_dir=gs://bucket/data")
    first = remote.start(*words)
    try:
        wait_for((remote.bucket / "long" / "config.json").exists, "config in the workdir")
        code, _, errors = remote.run(*words)
        assert code == 2, errors
        assert f"workdir gs://bucket/long is in use by process {first.pid} on " in errors, errors
        # Before its first step it would end at once, and leave its claim to be found dead.
        wait_for((remote.bucket / "long" / "checkpoints" / "45" / "SHA256SUMS").exists, "checkpoint", first)
    finally:
        first.terminate()
        _, errors = first.communicate(timeout=120)
    assert first.returncode == 75, errors
    assert not (remote.bucket / "long" / "lock").exists(), "a job that ended left its claim behind"


# --- data


def test_every_process_may_have_a_data_dir_of_its_own(storage, data_dir, tiny_process_run):
    assert "data_dir" in configuration.PLACE_KEYS, "processes with another data_dir would be refused"
    shutil.copytree(data_dir / "digits", storage.bucket / "data" / "digits")
    local, remote = (catalog.open_dataset("digits", place) for place in (data_dir, "gs://bucket/data"))
    assert remote.fingerprint == local.fingerprint and contents(remote.val) == contents(local.val)


def test_digits_that_are_not_there_are_made_at_home(storage, tmp_path):
    assert len(catalog.open_dataset("digits", "gs://bucket/data").train) == 1437
    assert (tmp_path / "user" / "stce_jax" / "digits").is_dir()
    assert not list(storage.bucket.rglob("*")), "something was written to the storage without being asked for"


def test_class_folders(storage, tmp_path, capsys):
    folder = image_sources.tree(storage.bucket / "pets", image_sources.WANTED)
    (storage.bucket / "pets" / "train" / "empty").mkdir()  # which storage does not know
    (storage.bucket / "pets" / "huge.bin").write_bytes(bytes(10))
    remote = catalog.open_dataset("folder", "gs://bucket/pets")
    assert "20 files" not in capsys.readouterr().out
    (folder / "train" / "empty").rmdir()
    local = catalog.open_dataset("folder", str(folder))
    assert remote.fingerprint == local.fingerprint and remote.class_names == local.class_names
    assert contents(remote.train) == contents(local.train)
    assert not any("huge.bin" in path for path, _ in storage.opened), "it copied more than the images"
    assert "there is nothing in gs://bucket/none/train" in refusal(catalog.open_dataset, "folder", "gs://bucket/none")


def test_data_are_copied_once_and_again_where_they_change(storage):
    source = image_sources.tree(storage.bucket / "pets", image_sources.WANTED)
    first = catalog.open_dataset("folder", "gs://bucket/pets")
    read = [path for path, mode in storage.opened if mode == "rb"]
    assert len(read) == len(set(read)) == len(image_sources.WANTED), "not every file was read just once"
    storage.opened.clear()
    again = catalog.open_dataset("folder", "gs://bucket/pets")
    assert not storage.opened and again.fingerprint == first.fingerprint
    images = sorted((source / "train").rglob("*.JPEG"))
    images[0].unlink()
    images[1].write_bytes(b"changed")
    (images[2].parent / "new.png").write_bytes(b"new")
    changed = catalog.open_dataset("folder", "gs://bucket/pets")
    assert {Path(path).name for path, _ in storage.opened} == {images[1].name, "new.png"}
    assert contents(changed.train) == contents(catalog.open_dataset("folder", str(source)).train)


def test_an_interrupted_copy_goes_on_where_it_was(storage, monkeypatch):
    (storage.bucket / "data" / "set").mkdir(parents=True)
    for number in range(9):
        (storage.bucket / "data" / "set" / f"{number}.bin").write_bytes(bytes([number]) * 1000)
    recorded, remote = storage.open, epath.Path("gs://bucket/data")

    def fail_at_five(path, mode):
        if path.endswith("5.bin"):
            wait_for(lambda: (mirror.local_root(remote) / "set" / "0.bin").exists(), "the first file, copied beside it")
            raise ConnectionError("the network is down\nand more lines")
        return recorded(path, mode)

    monkeypatch.setattr(storage, "open", fail_at_five)
    message = refusal(mirror.local_copy, remote, "set")
    target = mirror.local_root(remote) / "set"
    assert message.startswith(f"cannot copy gs://bucket/data/set to {target}: the network is down; "), message
    for thread in threading.enumerate():  # those that copied other files beside it are not waited for
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join()
    copied = {path.name for path in target.iterdir()}
    assert "0.bin" in copied and "5.bin" not in copied, copied
    storage.opened.clear()
    monkeypatch.setattr(storage, "open", recorded)
    assert mirror.local_copy(remote, "set") == target
    read = {Path(path).name for path, _ in storage.opened}
    assert read == {f"{number}.bin" for number in range(9)} - copied, "it copied what was there, or not all the rest"
    assert [path.read_bytes()[:1] for path in sorted(target.iterdir())] == [bytes([number]) for number in range(9)]


def test_a_file_that_is_cut_off_on_the_way_does_not_count_as_copied(storage, monkeypatch):
    path = storage.bucket / "data" / "set" / "x.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(1000))
    real = storage.stat

    def stat(path):
        return dataclasses.replace(real(path), length=2000) if "x.bin" in path else real(path)

    monkeypatch.setattr(storage, "stat", stat)
    message = refusal(mirror.local_copy, epath.Path("gs://bucket/data"), "set")
    assert "x.bin has 1,000 bytes instead of 2,000" in message
    assert not (mirror.local_root("gs://bucket/data") / "set" / "x.bin").exists()


def test_processes_that_come_at_once_copy_once(storage):
    image_sources.tree(storage.bucket / "pets", image_sources.WANTED)
    with ThreadPoolExecutor(3) as pool:  # each opens the lock file anew, like processes
        opened = list(pool.map(lambda _: catalog.open_dataset("folder", "gs://bucket/pets"), range(3)))
    assert len(storage.opened) == len(image_sources.WANTED)
    assert len({dataset.fingerprint for dataset in opened}) == 1


def test_a_disk_without_room_is_named(storage, tmp_path):
    (storage.bucket / "data" / "set").mkdir(parents=True)
    (storage.bucket / "data" / "set" / "x.bin").write_bytes(bytes(5000))
    words = {"STCE_STANDIN_STORAGE": str(storage.bucket.parent), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", NO_ROOM]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | words)
    target = mirror.local_root("gs://bucket/data") / "set"
    expected = f"DataError: cannot copy gs://bucket/data/set to {target}: File too large"
    assert expected in done.stderr.splitlines()[-1], done.stderr
    with open(storage.bucket / "data" / "set" / "huge.bin", "wb") as file:
        file.truncate(8 * 2**40)  # takes no room itself
    message = refusal(mirror.local_copy, epath.Path("gs://bucket/data"), "set")
    assert message.startswith(f"no room to copy gs://bucket/data/set to {target}: it takes 8,796,093 MB, and "), message
    assert "XDG_CACHE_HOME" in message


# --- preparing


@pytest.fixture
def source(tmp_path):
    return image_sources.tree(tmp_path / "in" / "birds", image_sources.WANTED)


def test_prepare_to_remote_storage(storage, source, tmp_path, capsys):
    report = prepare("folder", str(source), data_dir="gs://bucket/data")
    directory = f"gs://bucket/data/folder/{report.config}/1.0.0"
    assert report.directory == directory and f"prepared in {directory};" in capsys.readouterr().out
    written = [path for path, mode in storage.opened if mode == "wb"]
    assert written[-1] == f"{directory}/dataset_info.json" and len(written) > 5, written
    storage.opened.clear()
    remote = catalog.open_dataset("folder", "gs://bucket/data")
    assert not storage.opened, "what was just prepared here was copied from the storage"
    local_report = prepare("folder", str(source), data_dir=str(tmp_path / "out"))
    local = catalog.open_dataset("folder", str(tmp_path / "out"))
    assert remote.fingerprint == local.fingerprint == local_report.fingerprint == report.fingerprint
    assert contents(remote.train) == contents(local.train)
    again = prepare("folder", str(source), data_dir="gs://bucket/data")
    assert again.directory == directory and f"already prepared: {directory}\n" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "cache")
    assert contents(catalog.open_dataset("folder", "gs://bucket/data").train) == contents(local.train)


def test_half_an_upload_is_no_data_set(storage, source, tmp_path, monkeypatch, capsys):
    (tmp_path / "four.txt").write_text("\n".join(image_sources.WNIDS))
    options = {"classes": str(tmp_path / "four.txt"), "data_dir": "gs://bucket/data"}
    recorded = storage.open

    def fail_at_the_end(path, mode):
        if mode == "wb" and path.endswith("dataset_info.json"):
            raise ConnectionError("the network is down")
        return recorded(path, mode)

    monkeypatch.setattr(storage, "open", fail_at_the_end)
    assert "the network is down" in refusal(prepare, "imagenet100", str(source), **options)
    assert "is not prepared in gs://bucket/data" in refusal(
        catalog.open_dataset, "imagenet100", "gs://bucket/data", options["classes"]
    )
    monkeypatch.setattr(storage, "open", recorded)
    capsys.readouterr()
    prepare("imagenet100", str(source), **options)
    assert "preparing" not in capsys.readouterr().out, "what was prepared was prepared anew"
    assert len(catalog.open_dataset("imagenet100", "gs://bucket/data", options["classes"]).train) == 12


def test_a_data_set_deleted_from_the_storage_is_made_anew(storage, source):
    first = prepare("folder", str(source), data_dir="gs://bucket/data")
    shutil.rmtree(storage.bucket / "data")
    shutil.rmtree(source / "train" / image_sources.WNIDS[0])
    shutil.rmtree(source / "val" / image_sources.WNIDS[0])
    second = prepare("folder", str(source), data_dir="gs://bucket/data")
    assert second.fingerprint != first.fingerprint and len(second.class_ids) == 3
    assert catalog.open_dataset("folder", "gs://bucket/data").class_ids == second.class_ids


def test_a_remote_source_is_refused(storage):
    assert "must be local" in refusal(prepare, "folder", "gs://bucket/in", data_dir="out", kind=ConfigError)


# --- the stand-in


def test_the_stand_in_refuses_what_storage_refuses(storage):
    path = epath.Path("gs://bucket/a/b.txt")
    with pytest.raises(NotImplementedError, match="cannot be opened with mode 'a'"), path.open("a"):
        pass
    with path.open("w") as file:
        file.write("whole")
        file.flush()
        assert not path.exists(), "it can be seen before it is complete"
    assert path.read_text() == "whole" and path.parent.is_dir()
    epath.Path("gs://bucket/empty").mkdir()
    assert not epath.Path("gs://bucket/empty").exists()
    path.unlink()
    assert not path.parent.exists(), "a directory is there with nothing below it"
    with pytest.raises(FileNotFoundError):
        list(path.parent.iterdir())
