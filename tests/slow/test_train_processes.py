"""`stce train` in two real processes of two devices each: one run, one workdir, ended together."""

import contextlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import TINY, wait_for, without_gloo
from PIL import Image

from stce_jax.workdir.metric_lines import read_metrics

# 30 steps with a checkpoint in the middle; wider and trained more gently than the tests' tiny model, whose last bits
# grow into visible differences within thirty steps.
WORDS = (
    *[word for word in TINY if not any(name in word for name in ("eval_every", "epochs=2", "width=16"))],
    "--config.epochs=0.669",
    "--config.eval_every=0.335",
    "--config.log_every=1",
    "--config.model.body.vit.width=32",
    "--config.model.body.vit.mlp_dim=64",
    "--config.optimizer.learning_rate=1e-3",
    "--config.optimizer.epsilon=1e-6",
)
FOREVER = ("--config.epochs=1000", "--config.log_every=5")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(workdir, data_dirs, *words, count=2, devices=2, own=None):
    """The processes of a run; own: {index: words for that process alone}."""
    port = free_port()
    processes = []
    for index in range(count):
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
        if count > 1:
            environment |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(count)}
            environment |= {"JAX_PROCESS_ID": str(index)}
        places = (f"--workdir={workdir}", f"--data_dir={data_dirs[index]}")
        command = [sys.executable, "-m", "stce_jax", "train", *WORDS, *places, *words, *(own or {}).get(index, ())]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **options))
    return processes


def finish(processes, codes, timeout=120):
    """Outputs and errors of processes, which must end with these codes; none is left behind."""
    try:
        ended = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.kill()
    found = [process.returncode for process in processes]
    assert found == codes, f"exit codes {found}, not {codes}: {[errors for _, errors in ended]}"
    return ended


def wait_for_steps(workdir, processes, step):
    deadline = time.monotonic() + 90
    while max((line["step"] for line in read_metrics(workdir)), default=0) < step:
        assert all(process.poll() is None for process in processes), [process.communicate() for process in processes]
        assert time.monotonic() < deadline, f"no step {step} after 90 s"
        time.sleep(0.02)


def said_by_us(errors):
    return [line for line in errors.splitlines() if line.startswith("stce: ")]


@pytest.fixture(scope="module")
def data_dirs(data_dir, stce_here, tmp_path_factory):
    """Each process has its own copy of the data."""
    sheet = tmp_path_factory.mktemp("b") / "b.png"
    assert stce_here("show-data", "--config=digits", f"--data_dir={data_dir}", f"--output={sheet}").returncode == 0
    copy = tmp_path_factory.mktemp("other") / "data"
    shutil.copytree(data_dir / "digits", copy / "digits")
    return [data_dir, copy]


@pytest.fixture(scope="module")
def four_devices(data_dirs, tmp_path_factory):
    """A finished run of one process with four devices."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    finish(start(workdir, data_dirs, count=1, devices=4), [0])
    return workdir


@pytest.fixture(scope="module")
def two_processes(data_dirs, tmp_path_factory):
    """(workdir, outputs) of a finished run of two processes with two devices each, parameters split over all four."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    ended = finish(start(workdir, data_dirs, "--config.fsdp_devices=4"), [0, 0])
    return workdir, ended


def losses(workdir):
    return np.array([line["loss"] for line in read_metrics(workdir) if line["split"] == "train"])


def test_two_processes_equal_one(four_devices, two_processes):
    one, two = losses(four_devices), losses(two_processes[0])
    assert len(one) == 30
    np.testing.assert_allclose(two, one, rtol=1e-5, err_msg="losses of thirty steps")
    evaluations = [
        [line for line in read_metrics(run) if line["split"] == "eval"] for run in (four_devices, two_processes[0])
    ]
    assert [(line["step"], line["top1"]) for line in evaluations[1]] == [
        (line["step"], line["top1"]) for line in evaluations[0]
    ]


def test_they_write_one_workdir_and_one_output(four_devices, two_processes):
    workdir, ((output, errors), (other_output, other_errors)) = two_processes
    lines = [(line["split"], line["step"]) for line in read_metrics(workdir)]
    assert len(lines) == len(set(lines)) == 32, "a line stands twice, or is missing"

    def names(root):
        return sorted(re.sub(r"tfevents.*", "tfevents", path.name) for path in root.iterdir())

    assert names(workdir) == names(four_devices)
    assert names(workdir / "checkpoints") == names(four_devices / "checkpoints") == ["15", "30"]
    assert "finished: top-1 " in output and not said_by_us(errors + other_errors)
    assert without_gloo(other_output) == [], "the second process talks, too"


def test_one_process_reads_what_two_wrote_and_goes_on(two_processes, stce_here, data_dirs, tmp_path):
    workdir = shutil.copytree(two_processes[0], tmp_path / "copy")
    done = stce_here("evaluate", f"--workdir={workdir}", f"--data_dir={data_dirs[0]}")
    logged = [line for line in read_metrics(workdir) if line["split"] == "eval"][-1]
    assert f"top-1 {100 * logged['top1']:.2f}%" in done.stdout, done.stderr
    shutil.rmtree(workdir / "checkpoints" / "30")
    [(output, _)] = finish(start(workdir, data_dirs, count=1, devices=2), [0])
    assert "\nstart: resuming from step 15 of 30\n" in output
    np.testing.assert_allclose(losses(workdir), losses(two_processes[0]), rtol=1e-5)


def test_both_end_early_at_the_same_evaluation(data_dirs, tmp_path):
    still = [f"--config.optimizer.{rate}learning_rate=0" for rate in ("", "warmup_", "final_")]
    words = (*still, "--config.epochs=50", "--config.eval_every=0.5", "--config.patience=2")
    [(output, errors), (other, _)] = finish(start(tmp_path / "run", data_dirs, *words), [0, 0])
    assert "stopped early at epoch " in output and " of 50: no better score in 2 evaluations than" in output, errors
    assert len([line for line in read_metrics(tmp_path / "run") if line["split"] == "eval"]) == 3
    assert without_gloo(other) == []


def test_a_signal_to_one_stops_both_with_one_step_saved(four_devices, data_dirs, tmp_path):
    workdir = tmp_path / "run"
    processes = start(workdir, data_dirs, devices=1)
    wait_for_steps(workdir, processes, 8)
    processes[1].terminate()
    (_, errors), (_, other_errors) = finish(processes, [75, 75])
    pattern = r"stce: stopped by .* at step (\d+), which is saved; run again to resume"
    [line], [other_line] = said_by_us(errors), said_by_us(other_errors)
    step, other_step = int(re.fullmatch(pattern, line)[1]), int(re.fullmatch(pattern, other_line)[1])
    assert step == other_step and "SIGTERM" in other_line and "a signal to another process" in line
    finish(start(workdir, data_dirs, devices=1), [0, 0])
    np.testing.assert_allclose(losses(workdir), losses(four_devices), rtol=1e-5)


# SIGSTOP, and the rest of what can happen to a process, are in test_processes.py.
def test_when_one_is_killed_the_other_ends_naming_it_and_both_can_go_on(data_dirs, tmp_path):
    workdir = tmp_path / "run"
    processes = start(workdir, data_dirs, *FOREVER, devices=1)
    wait_for((workdir / "checkpoints" / "15").is_dir, "checkpoint", processes[0])
    processes[0].kill()
    lost_at = time.monotonic()
    try:
        [(_, errors)] = finish([processes[1]], [75])
    finally:
        finish([processes[0]], [-9])
    assert time.monotonic() - lost_at < 60, "it took the other too long"
    assert f"stce: process 0 on {socket.gethostname()}" in said_by_us(errors)[-1], errors
    assert [path for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()], "no checkpoint is left"
    reached = max(line["step"] for line in read_metrics(workdir))
    processes = start(workdir, data_dirs, *FOREVER, devices=1)
    wait_for_steps(workdir, processes, reached + 5)
    processes[0].terminate()
    (output, _), _ = finish(processes, [75, 75])
    assert "\nstart: resuming from step " in output


def test_other_configs_refuse_to_start_together(data_dirs, tmp_path):
    processes = start(tmp_path / "run", data_dirs, own={1: ("--config.seed=1",)})
    ended = finish(processes, [2, 2])
    for _, errors in ended:
        [line] = said_by_us(errors)
        assert "another config" in line and '"seed": 1 instead of "seed": 0' in line, line
    assert not (tmp_path / "run").exists()


def png(level):
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (level, 10, 20)).save(content, format="PNG")
    return content.getvalue()


def test_other_data_refuse_to_start_together(data_dirs, tmp_path):
    folders = []
    for name in ("a", "b"):
        root = tmp_path / name
        for split in ("train", "val"):
            for label in "01":
                (root / split / label).mkdir(parents=True)
                for number in range(40):
                    (root / split / label / f"{number}.png").write_bytes(png(number))
        folders.append(root)
    (folders[1] / "train" / "1" / "39.png").write_bytes(png(200) + b" ")
    words = ("--config=small_folder", *WORDS[1:], "--config.model.body.vit.heads=2", f"--workdir={tmp_path / 'run'}")
    processes = []
    port = free_port()
    for index, folder in enumerate(folders):
        environment = os.environ | {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
        environment |= {"JAX_PROCESS_ID": str(index), "JAX_NUM_CPU_DEVICES": "2"}
        command = [sys.executable, "-m", "stce_jax", "train", *words, f"--data_dir={folder}"]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **options))
    for _, errors in finish(processes, [2, 2]):
        [line] = said_by_us(errors)
        assert "another data than" in line, line


def test_an_error_in_one_ends_the_other_with_its_cause(data_dirs, tmp_path):
    """Here data that are not there."""
    processes = start(tmp_path / "run", [data_dirs[0], "/proc/nowhere"])
    (_, errors), (_, other_errors) = finish(processes, [3, 3])
    [cause], [told] = said_by_us(other_errors), said_by_us(errors)
    assert "/proc/nowhere" in cause
    assert (
        told.startswith(f"stce: process 1 on {socket.gethostname()} ended: ") and cause.removeprefix("stce: ") in told
    )
