"""The shell scripts, run with stand-ins for what they call."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))


def bash(script, tmp_path, **environment):
    """Runs a bash text with tmp_path/bin first on the PATH; returns its standard output."""
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, **environment},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def stand_in(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_shellcheck(script):
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    subprocess.run(["shellcheck", "--external-sources", str(script)], check=True, cwd=ROOT / "launch")


@pytest.mark.parametrize(
    "shown, extra",
    [
        ("| NVIDIA-SMI 580.65.06    Driver Version: 580.65.06    CUDA Version: 13.0  |", "cuda13"),
        ("| NVIDIA-SMI 550.54.15    Driver Version: 550.54.15    CUDA Version: 12.4  |", "cuda12"),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", ""),
    ],
)
def test_the_build_of_jax_follows_the_driver(tmp_path, shown, extra):
    stand_in(tmp_path / "bin" / "nvidia-smi", f'echo "{shown}"')
    assert bash(f"source {ROOT}/launch/install.sh; accelerator_extra", tmp_path).strip() == extra


@pytest.fixture
def recorded(tmp_path):
    """A virtual environment whose interpreter only writes down what it is called with."""
    stand_in(tmp_path / "bin" / "nvidia-smi", "exit 1")
    stand_in(tmp_path / "venv" / "bin" / "python", f'echo "$@" >> {tmp_path}/calls')

    def run(words):
        (tmp_path / "calls").write_text("")
        bash(f"bash {ROOT}/launch/local.sh {words}", tmp_path, VENV=str(tmp_path / "venv"))
        return (tmp_path / "calls").read_text().splitlines()

    return run


@pytest.mark.parametrize(
    "words, called",
    [
        ("", "--config=digits --workdir=runs/digits"),
        ("--config.seed=1", "--config=digits --workdir=runs/digits --config.seed=1"),
        ("--config=digits:patch", "--config=digits:patch --workdir=runs/digits_patch --config=digits:patch"),
        (
            "--config=configs/small_folder.py --workdir=w --data_dir=d",
            "--config=configs/small_folder.py --workdir=w --config=configs/small_folder.py --workdir=w --data_dir=d",
        ),
    ],
)
def test_local_passes_its_arguments_to_train(recorded, words, called):
    assert recorded(words)[-1] == f"-m stce_jax train {called}"


def test_local_installs_once(recorded):
    first, second = recorded(""), recorded("")
    assert [call.startswith("-m pip install") for call in first] == [True, False]
    assert first[0].endswith(f"--editable {ROOT}")
    assert len(second) == 1, f"installed again: {second}"


def test_a_missing_python_is_said(tmp_path):
    done = subprocess.run(
        ["bash", str(ROOT / "launch" / "local.sh")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": "/no/python", "VENV": str(tmp_path / "venv")},
    )
    assert done.returncode != 0 and "needs Python 3.11, 3.12 or 3.13" in done.stderr
