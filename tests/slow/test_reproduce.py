"""`stce reproduce` with real commands: killed, resumed, and what becomes of their output."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import processes_of, wait_for

from stce_jax.processes.stopping import StopSignals
from stce_jax.reproduce.subprocesses import describe_place, run_command
from stce_jax.workdir.metric_lines import read_metrics

ROOT = Path(__file__).parents[2]


def test_a_command_that_is_killed_is_no_mystery(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (tmp_path / "python").write_text("#!/bin/sh\necho step 5\nkill -KILL $$\n")
    (tmp_path / "python").chmod(0o755)
    with StopSignals() as stop:
        found = run_command(["stce", "train"], tmp_path / "log.txt", stop)
    assert found == (137, f"killed by SIGKILL; see {tmp_path}/log.txt")


def test_a_command_is_run_with_its_output_kept(tmp_path):
    with StopSignals() as stop:
        assert run_command(["stce", "completion", "bash"], tmp_path / "log.txt", stop) == (0, "")
        code, last = run_command(["stce", "evaluate", "--workdir=/no/where"], tmp_path / "log.txt", stop)
    assert code == 2 and last.startswith("/no/where is no workdir of a run")
    log = (tmp_path / "log.txt").read_text()
    assert log.startswith("$ stce completion bash\n") and "$ stce evaluate --workdir=/no/where\n" in log


def test_nothing_of_the_current_directory_is_imported_by_what_is_started(tmp_path, monkeypatch):
    """Neither by commands of `stce reproduce` nor by the processes that these start: Python begins them with -c."""
    hostile = ("jax", "numpy", "multiprocessing", "pickle", "struct", "signal", "socket", "stce_jax", "sitecustomize")
    for name in hostile:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name}.py of this directory was imported')")
    monkeypatch.chdir(tmp_path)
    assert "cores" in describe_place()
    with StopSignals() as stop:
        found = run_command(["stce", "models", "vit_s_stce"], tmp_path / "log.txt", stop)
    assert found == (0, ""), (tmp_path / "log.txt").read_text()
    code = """if __name__ == "__main__":
    import multiprocessing, operator, sys
    sys.argv = ["stce", "completion", "bash"]
    from stce_jax.cli import main
    try:
        main()
    except SystemExit:
        pass
    child = multiprocessing.get_context("spawn").Process(target=operator.add, args=(1, 2))
    child.start()
    child.join()
    sys.exit(child.exitcode)"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


TINY = (
    "--config.epochs=1",
    "--config.eval_every=1",
    "--config.model.body.vit.depth=1",
    "--config.model.body.vit.width=12",
)


def test_a_killed_sweep_leaves_no_process_and_goes_on_where_it_was(stce, tmp_path, data_dir):
    workdir = tmp_path / "sweep"
    words = ["reproduce", "table8", "--scale=smoke", "--runs=stce", "--seeds=0", *TINY]
    words += [f"--data_dir={data_dir}", f"--workdir={workdir}", "--config.log_every=5"]
    command = [sys.executable, "-m", "stce_jax", *words]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, cwd=ROOT, text=True)
    first = workdir / "cells" / "stce_seed0"
    wait_for(lambda: read_metrics(first), "line of metrics", seconds=120)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not processes_of(f"--workdir={workdir}/cells/"), "end of the child")

    done = stce(*words)
    assert done.returncode == 0, done.stderr
    last = [line for line in read_metrics(first) if line["split"] == "eval"][-1]
    found = json.loads((first / "evaluation" / "evaluation.json").read_text())
    assert found["top1"] == pytest.approx(last["top1"], abs=1e-6) and found["step"] == 22
    text = (workdir / "report.md").read_text()
    assert "1 of 1 runs are finished" in text and "2 x cpu" in text
    assert re.search(r"\| T = 3 \|.*\| 737 \| [\d,]+ \(100", text), f"no speed in the report: {text}"
    assert "(out of" not in text and "Failed:" not in text
