"""Cells as jobs of submitit: on a Slurm of stand-ins, and as real processes, one of which is killed."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import leaves, processes_of, wait_for
from sweep_cells import finish

from stce_jax.processes.stopping import StopSignals
from stce_jax.reproduce import jobs
from stce_jax.reproduce.cell_job import CellJob
from stce_jax.reproduce.cells import cells_of, load_rows
from stce_jax.workdir.metric_lines import read_metrics

pytest.importorskip("submitit")
ROOT = Path(__file__).parents[2]
ODD = 'it\'s a "sweep" of $HOME'
TINY = ("--config.epochs=2", "--config.eval_every=1", "--config.model.body.vit.depth=1")
TINY += ("--config.model.body.vit.width=12", "--config.log_every=5")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder of stand-ins that is first on the PATH: `calls` has their words, `script` is what sbatch was given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    calls = tmp_path / "calls"
    recording = f'{{ printf "%s" "${{0##*/}}"; printf " %q" "$@"; echo; }} >> {calls}\n'
    # srun runs what follows its own options, of which --cpu-bind=none is the last but --cpus-per-task, as a step: a
    # session of its own, so that signals reach all its processes, but not the batch script's shell.
    srun = 'while [ "$1" != --cpu-bind=none ]; do shift; done; while [[ $1 == -* ]]; do shift; done\n'
    srun += f'echo $$ > {tmp_path}/step; exec setsid "$@"'
    then = {
        "sbatch": f'cp "$1" {tmp_path}/script; echo "Submitted batch job 77"',
        "squeue": f"cat {tmp_path}/state",
        "scontrol": "",
        "srun": srun,
    }
    for name, text in then.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{recording}{text}\n")
        (folder / name).chmod(0o755)
    (tmp_path / "state").write_text("RUNNING\n")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return tmp_path


def calls(slurm, name):
    """The recorded calls of a stand-in, without its name."""
    lines = (shlex.split(line) for line in (slurm / "calls").read_text().splitlines())
    return [words[1:] for words in lines if words[0] == name]


def start(slurm, index):
    """Starts a job of the array as Slurm does."""
    numbers = {"SLURM_JOB_ID": str(78 + index), "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": str(index)}
    with open(slurm / f"output_{index}", "w") as output:
        return subprocess.Popen(["bash", slurm / "script"], env=os.environ | numbers, cwd=slurm, stdout=output)


def signal_step(slurm, number):
    os.killpg(int((slurm / "step").read_text()), number)


def options(script):
    """{option: value} of the lines for sbatch."""
    lines = (shlex.split(line)[1:] for line in script.splitlines() if line.startswith("#SBATCH "))
    return {word.lstrip("-").partition("=")[0]: word.partition("=")[2] for (word,) in lines}


def test_an_array_of_slurm_has_a_job_for_each_cell_that_is_not_done(slurm, stce_here, data_dir):
    workdir = slurm / ODD
    words = ["reproduce", "table8", "--scale=smoke", "--runs=pooling,stce,iterations_1", "--seeds=0"]
    words += [f"--workdir={workdir}", "--config.dataset=digits"]
    rows = [row for row in load_rows("table8", "smoke") if row.run in ("pooling", "stce", "iterations_1")]
    pooling, iterations_1, stce = cells_of(rows, [0], workdir)
    finish(iterations_1, [True] * 4)
    asked = ["--partition=gpu", "--gpus=1", "--cpus=8", "--time=12:00:00", "--parallel=3"]
    done = stce_here(*words, f"--data_dir={data_dir}", "--submit=slurm", *asked, "--sbatch=account=me")
    assert done.returncode == 0, done.stderr
    assert "2 cells are submitted as job 77" in done.stdout and "scancel 77" in done.stdout

    (folder,) = (workdir / "jobs").iterdir()
    assert (folder / "cells.txt").read_text() == "77_0\tpooling_seed0\n77_1\tstce_seed0\n"
    found = options((slurm / "script").read_text())
    expected = {"partition": "gpu", "gpus-per-node": "1", "cpus-per-task": "8", "time": "720", "account": "me"}
    expected |= {"array": "0-1%2", "signal": "USR2@120", "requeue": "", "open-mode": "append", "job-name": "stce"}
    assert expected.items() <= found.items() and found["output"] == f"{folder}/%A_%a_0_log.out"

    # The first job's cell is done by now; the second cannot write.
    finish(pooling, [True, False])
    assert start(slurm, 0).wait(240) == 0, "a cell that is done is done"
    assert "pooling_seed0: done before: top-1 50.00%" in (slurm / "output_0").read_text()
    stce.directory.write_text("a file in the way")
    assert start(slurm, 1).wait(240) == 2, "Slurm does not see the exit code"
    (step, _) = calls(slurm, "srun")
    assert "--cpus-per-task=8" in step and "-P" in step and not stce.finished()


# What a run does: it saves when it is asked to, and ends with 75.
RUN = """
import pathlib, signal, sys, time
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
pathlib.Path("ready").touch()
while not stopped:
    time.sleep(0.02)
time.sleep(0.2)
pathlib.Path("saved").touch()
sys.exit(75)
"""


@pytest.fixture
def job(slurm):
    """A function that starts a job of an array whose command is a list of words."""

    def started(*words):
        executor = jobs._executor("slurm", slurm / "folder", jobs.Resources(parallel=1))
        executor.map_array(CellJob({}), [list(words), list(words)])
        return start(slurm, 1)

    return started


@pytest.mark.parametrize(
    "number, state, queued",
    [
        (signal.SIGUSR2, "RUNNING", True),  # its time is nearly up
        (signal.SIGTERM, "RUNNING", True),  # it is preempted, with time to save
        (signal.SIGTERM, "COMPLETING", False),  # somebody has cancelled it, or Slurm queues it again itself
    ],
    ids=["time", "preempted", "cancelled"],
)
def test_a_job_that_slurm_ends_saves_and_is_queued_again(slurm, job, number, state, queued):
    (slurm / "state").write_text(f"{state}\n")
    process = job(sys.executable, "-c", RUN)
    wait_for((slurm / "ready").exists, "start of the command", process)
    signal_step(slurm, number)
    code = process.wait(120)
    assert (slurm / "saved").exists(), "the command was killed before it had saved"
    assert calls(slurm, "scontrol") == [["requeue", "77_1"]] * queued and code == (255 if queued else 75)
    if queued:  # it runs again, from what the first left behind
        (slurm / "ready").unlink()
        again = start(slurm, 1)
        wait_for((slurm / "ready").exists, "second start", again)
        signal_step(slurm, signal.SIGKILL)
        assert again.wait(60) == 137


@pytest.mark.parametrize("code, seen", [("sys.exit(5)", 5), ("os.kill(os.getpid(), 9)", 137), ("0", 0)])
def test_the_exit_code_of_a_job_is_its_commands(slurm, job, code, seen):
    assert job(sys.executable, "-c", f"import os, sys; {code}").wait(120) == seen
    assert not calls(slurm, "scontrol")


def test_a_job_has_the_environment_of_the_command_but_for_what_is_changed(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code = "import os, sys; found = [os.environ.get(name) for name in sys.argv[1:]]"
    code += "; sys.exit(found != ['cpu', None, '1'])"
    try:
        CellJob({"CUDA_VISIBLE_DEVICES": None, "OTHER": "1"})(
            [sys.executable, "-c", code, "JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES", "OTHER"]
        )
    finally:
        signal.signal(signal.SIGTERM, before)


def test_jobs_of_this_machine_run_so_many_at_a_time_and_save_when_they_are_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [row for row in load_rows("table8", "smoke") if row.run == "stce"]
    cells = cells_of(rows, [0, 1, 2], tmp_path / "sweep")
    text = RUN.replace('"ready"', 'f"ready_{sys.argv[1]}"').replace('"saved"', 'f"saved_{sys.argv[1]}"')
    commands = [[sys.executable, "-c", text, str(cell.seed)] for cell in cells]
    resources = jobs.Resources(parallel=2)
    folder = tmp_path / "jobs"
    folder.mkdir()
    executor = jobs._executor("local", folder, resources)

    def two_are_ready():
        return all((tmp_path / f"ready_{seed}").exists() for seed in (0, 1))

    class Stop:
        """A signal that comes once two jobs are at work."""

        @property
        def requested(self):
            return "SIGTERM" if two_are_ready() else ""

    jobs._run_here(executor, cells, commands, folder, resources, Stop())
    assert sorted(path.name for path in tmp_path.glob("*_?")) == ["ready_0", "ready_1", "saved_0", "saved_1"]
    names = [line.split("\t")[1] for line in (folder / "cells.txt").read_text().splitlines()]
    assert names == ["stce_seed0", "stce_seed1"] and not processes_of(folder)
    assert "stce_seed2" not in capsys.readouterr().out


def test_a_job_of_this_machine_that_fails_stops_no_other(tmp_path, capsys):
    cells = cells_of([row for row in load_rows("table8", "smoke") if row.run == "stce"], [0, 1], tmp_path / "sweep")
    commands = [[sys.executable, "-c", f"print('seed {cell.seed}'); exit({5 - cell.seed})"] for cell in cells]
    folder = tmp_path / "jobs"
    folder.mkdir()
    executor = jobs._executor("local", folder, jobs.Resources())
    with StopSignals() as stop:
        jobs._run_here(executor, cells, commands, folder, jobs.Resources(), stop)
    said = re.findall(r"^stce_seed(\d): planned: see (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert [seed for seed, _ in said] == ["0", "1"]
    assert all(f"seed {seed}\n" in Path(output).read_text() for seed, output in said)


@pytest.mark.parametrize(
    "text, named",
    [
        ("echo 'sbatch: error: invalid partition specified: gup' >&2; exit 1", "invalid partition specified: gup"),
        (None, "there is no srun or sbatch here"),
    ],
)
def test_slurm_that_refuses_or_is_not_there_is_one_line(slurm, stce_here, data_dir, text, named):
    if text:
        (slurm / "bin" / "sbatch").write_text(f"#!/usr/bin/env bash\n{text}\n")
    else:
        (slurm / "bin" / "srun").unlink()
    words = ["reproduce", "table8", "--scale=smoke", "--runs=stce", f"--workdir={slurm / 'w'}"]
    done = stce_here(*words, f"--data_dir={data_dir}", "--submit=slurm")
    assert done.returncode == 2 and named in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (slurm / "w" / "jobs").exists()


def test_a_job_that_is_killed_and_tried_again_ends_with_the_bits_of_an_undisturbed_run(stce, tmp_path, data_dir):
    """The job is killed with all its processes, as Slurm does; then its cell is run again."""
    workdir = tmp_path / ODD
    sweep = ["reproduce", "table8", "--scale=smoke", "--runs=stce", "--seeds=0", *TINY]
    sweep += [f"--data_dir={data_dir}", f"--workdir={workdir}"]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    first = workdir / "cells" / "stce_seed0"
    command = [sys.executable, "-m", "stce_jax", *sweep, "--submit=local"]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True
    )
    # Behind the first checkpoint, which is step 22 of 45: the second epoch's first lines will have been written twice.
    behind = "a line behind the checkpoint"
    wait_for(lambda: any(line["step"] > 22 for line in read_metrics(first)), behind, process, seconds=240)
    for number in processes_of(workdir):
        if number != process.pid:
            os.kill(number, signal.SIGKILL)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 75 and "1 of 1 cells are not done (stce_seed0)" in error, error
    assert re.search(r"^stce_seed0: (stopped: see|running: process) ", out, re.MULTILINE), out  # as it was just killed
    (log,) = (workdir / "jobs").rglob("*_0_log.out")
    assert "stce_seed0 ..." in log.read_text() and str(log) in out
    assert not processes_of(workdir), "a process is left"
    assert json.loads((first / "cell.json").read_text())["error"] == "running"

    done = stce(*sweep, "--cell=stce_seed0")
    assert done.returncode == 0 and "stce_seed0: top-1 " in done.stdout, done.stderr
    (row,) = [row for row in load_rows("table8", "smoke", TINY) if row.run == "stce"]
    whole = tmp_path / "undisturbed"
    undisturbed = stce("train", *row.words(), "--config.seed=0", f"--data_dir={data_dir}", f"--workdir={whole}")
    assert undisturbed.returncode == 0, undisturbed.stderr
    _, killed, second = (first / "log.txt").read_text().split("$ stce train")
    assert "finished" not in killed and "finished" in second, "it was not killed in time"
    assert all(map(np.array_equal, leaves(first), leaves(whole))), "it ends with other weights"
