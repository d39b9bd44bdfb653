"""The shell scripts, run with stand-ins for what they call."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from helpers import TINY, wait_for

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
# What a shell might take apart, expand or run.
ODD_WORDS = ["--config.name=two words", '--config.note=it\'s "quoted" $HOME `id` \\ ; *', "--config.empty="]


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    """The scripts do not hear what was chosen for these tests: an interpreter, the locked versions."""
    for name in ("LOCKED", "PYTHON", "VENV"):
        monkeypatch.delenv(name, raising=False)


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


def launch(tmp_path, script, *words, **environment):
    """Runs a launch script with tmp_path/bin first on the PATH, in tmp_path; returns it completed."""
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return subprocess.run(
        ["bash", str(script), *words],
        capture_output=True,
        text=True,
        timeout=280,
        env=outside | {"PATH": path, "VENV": str(tmp_path / "venv")} | environment,
        cwd=tmp_path,
    )


def stand_in(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_shellcheck(script):
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", "-x", str(script)], capture_output=True, text=True, cwd=LAUNCH)
    assert done.returncode == 0, done.stdout


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
    assert recorded(words)[-1] == f"-P -m stce_jax train {called}"


def test_local_installs_once(recorded):
    first, second = recorded(""), recorded("")
    assert [call.startswith("-P -m pip install") for call in first] == [True, False]
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


@pytest.fixture
def only_shims(tmp_path):
    """A PATH whose Pythons are shims of pyenv for versions that are not active; only 3.12 is installed."""
    for name, versions in (("python3.13", "3.9.1"), ("python3.12", "3.12.1"), ("python3.11", ""), ("python3", "")):
        listed = f"\n\nThe '{name}' command exists in these Python versions:\n  {versions}\n\nNote: ..." * bool(
            versions
        )
        stand_in(tmp_path / "bin" / name, f'printf "pyenv: {name}: command not found{listed}\n" >&2; exit 127')
    return tmp_path


def test_a_shim_of_pyenv_is_told_apart_from_a_missing_python(only_shims):
    done = launch(only_shims, LAUNCH / "local.sh")
    assert done.returncode == 2 and not (only_shims / "venv" / "bin").exists()
    said = (
        f"python3.12 is a shim of pyenv that is not active here; choose it: PYENV_VERSION=3.12.1 bash {LAUNCH}/local.sh"
    )
    assert done.stderr == f"{said}\n"


def test_locked_installs_what_was_tested_and_lines_say_what_is_done(tmp_path):
    said = "Collecting jax\\n  Downloading jax\\nRequirement already\\nInstalling collected packages: jax\\n"
    stand_in(tmp_path / "bin" / "nvidia-smi", "exit 1")
    stand_in(tmp_path / "venv" / "bin" / "python", f'echo "$@" >> {tmp_path}/calls; [ "$3" != pip ] || printf "{said}"')
    done = launch(tmp_path, LAUNCH / "local.sh", LOCKED="1")
    install, train = (tmp_path / "calls").read_text().splitlines()
    assert f"--constraint {ROOT}/requirements.lock" in install and "train" in train
    assert re.findall(r"^ +\d+ s  (.*)$", done.stdout, re.MULTILINE) == [
        "Collecting jax",
        "Installing collected packages: jax",
    ]
    launch(tmp_path, LAUNCH / "local.sh", LOCKED="")
    assert len((tmp_path / "calls").read_text().splitlines()) == 4, "what is not locked is another environment"


def test_an_installation_that_fails_ends_the_script(tmp_path):
    stand_in(tmp_path / "bin" / "nvidia-smi", "exit 1")
    stand_in(tmp_path / "venv" / "bin" / "python", '[ "$3" != pip ] || { echo "ERROR: no network" >&2; exit 1; }')
    done = launch(tmp_path, LAUNCH / "local.sh")
    assert done.returncode == 1 and "ERROR: no network" in done.stderr
    assert not (tmp_path / "venv" / "installed").exists()


def recorder(path, calls, then=""):
    """A stand-in that adds its words, quoted, as a line to the file `calls`, then does `then`."""
    stand_in(path, f'{{ printf "%s" {path.name}; printf " %q" "$@"; echo; }} >> {calls}\n{then}')


def lines_of(calls):
    """The recorded calls as lists of words."""
    return [shlex.split(line) for line in calls.read_text().splitlines()] if calls.exists() else []


def is_installed(venv):
    """Leaves the stamp of a finished installation for a machine without accelerator, so that none is tried."""
    bash(f'echo " $(cat {ROOT}/pyproject.toml {ROOT}/requirements.txt | cksum)" > {venv}/installed', venv)


# local.sh


def test_local_chooses_gpus(tmp_path):
    stand_in(tmp_path / "bin" / "nvidia-smi", "exit 1")
    stand_in(tmp_path / "venv" / "bin" / "python", 'echo "${CUDA_VISIBLE_DEVICES-unset} $*"')
    is_installed(tmp_path / "venv")

    def shown(*words, **environment):
        done = launch(tmp_path, LAUNCH / "local.sh", *words, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()[0], done.stdout

    assert shown("--gpus=0,3")[0] == "0,3"
    assert "--gpus" not in shown("--gpus=0,3")[1], "stce train does not know --gpus"
    assert shown("--gpus=all")[0] == "unset"
    assert shown("--gpus=all", CUDA_VISIBLE_DEVICES="2")[0] == "2"
    assert shown(CUDA_VISIBLE_DEVICES="2")[0] == "2"
    for wrong in ("", "a", "0,", "0;1"):
        done = launch(tmp_path, LAUNCH / "local.sh", f"--gpus={wrong}")
        assert done.returncode == 2 and "--gpus=0,1" in done.stderr, f"--gpus={wrong} is taken"


def test_local_dry_run_makes_nothing_and_can_be_pasted(tmp_path):
    stand_in(tmp_path / "bin" / "nvidia-smi", 'echo "CUDA Version: 13.0"')
    stand_in(tmp_path / "bin" / "python3.12", "[ $1 = -c ]")  # it is asked for its version
    done = launch(tmp_path, LAUNCH / "local.sh", "--dry-run", "--gpus=1", *ODD_WORDS, PYTHON="python3.12")
    assert done.returncode == 0, done.stderr
    make, install, train = [shlex.split(line) for line in done.stdout.splitlines()]
    python = str(tmp_path / "venv" / "bin" / "python")
    assert make == ["python3.12", "-P", "-m", "venv", str(tmp_path / "venv")]
    assert install[:5] == [python, "-P", "-m", "pip", "install"] and install[-1] == f"{ROOT}[cuda13]"
    assert train[:7] == ["env", "CUDA_VISIBLE_DEVICES=1", python, "-P", "-m", "stce_jax", "train"]
    assert train[-3:] == ODD_WORDS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin"], "a dry run left something behind"


def test_two_at_once_install_once(tmp_path):
    stand_in(tmp_path / "bin" / "nvidia-smi", "exit 1")
    stand_in(tmp_path / "venv" / "bin" / "python", f"echo $* >> {tmp_path}/calls; [ $2 != pip ] || sleep 0.5")
    environment = os.environ | {"VENV": str(tmp_path / "venv"), "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    started = [subprocess.Popen(["bash", LAUNCH / "local.sh"], env=environment) for _ in range(2)]
    assert [process.wait(60) for process in started] == [0, 0]
    calls = (tmp_path / "calls").read_text()
    assert calls.count("pip install") == 1 and calls.count("stce_jax train") == 2, calls


# retry.sh


@pytest.mark.parametrize("code, again", [(0, False), (1, False), (2, False), (5, False), (75, True), (137, True)])
def test_which_ends_are_tried_again(tmp_path, code, again):
    said = bash(f"source {LAUNCH}/retry.sh; if is_worth_retrying {code}; then echo again; fi", tmp_path)
    assert (said == "again\n") == again


def test_the_newest_checkpoint_is_found(tmp_path):
    def last_saved(workdir):
        return bash(f"source {LAUNCH}/retry.sh; last_saved {workdir}", tmp_path).strip()

    assert last_saved(tmp_path / "nothing") == "none"
    for name in ("9", "100", "20", "300.orbax-checkpoint-tmp", "notes"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert last_saved(tmp_path) == "100"
    stand_in(tmp_path / "bin" / "gcloud", '[ "$3" = gs://b/run/checkpoints/ ] && printf "%s\\n" "$3" "$3"{9,100,20}/')
    assert last_saved("gs://b/run") == "100"
    stand_in(tmp_path / "bin" / "gcloud", "echo 'ERROR: One or more URLs matched no objects.' >&2; exit 1")
    assert last_saved("gs://b/run") == "none"
    stand_in(tmp_path / "bin" / "gcloud", "echo 'ERROR: no credentials' >&2; exit 1")
    assert int(last_saved("gs://b/run")) > 1e9, "a bucket that does not answer counts as a run that gets nowhere"


# slurm.sbatch


class Slurm:
    """A job as Slurm runs it: from a copy of the script, with stand-ins for srun, squeue and scontrol."""

    def __init__(self, folder):
        self.folder, self.calls = folder, folder / "calls"
        self.script = folder / "spool" / "slurm_script"
        self.script.parent.mkdir()
        shutil.copy(LAUNCH / "slurm.sbatch", self.script)
        stand_in(folder / "bin" / "nvidia-smi", "exit 1")
        stand_in(folder / "venv" / "bin" / "python", "exit 99")
        is_installed(folder / "venv")
        recorder(folder / "bin" / "squeue", self.calls, "echo RUNNING")
        recorder(folder / "bin" / "scontrol", self.calls)
        recorder(folder / "bin" / "sbatch", self.calls)
        self.srun("exit 0")
        self.environment = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(folder), "STCE_ROOT": str(ROOT)}

    def srun(self, then):
        recorder(self.folder / "bin" / "srun", self.calls, then)

    def run(self, *words, **environment):
        """(exit code, recorded calls) of the job."""
        self.calls.unlink(missing_ok=True)
        self.done = launch(self.folder, self.script, *words, **self.environment | environment)
        return self.done.returncode, lines_of(self.calls)


@pytest.fixture
def slurm(tmp_path):
    return Slurm(tmp_path)


REQUEUE = ["scontrol", "requeue", "7"]


def test_slurm_runs_one_step_with_all_words(slurm):
    code, calls = slurm.run("--config=digits", "--workdir=w", *ODD_WORDS)
    assert code == 0, slurm.done.stderr
    (step,) = calls
    python = str(slurm.folder / "venv" / "bin" / "python")
    train = step.index(python)
    assert step[train:] == [python, "-P", "-m", "stce_jax", "train", "--config=digits", "--workdir=w", *ODD_WORDS]
    assert step[:train] == ["srun", "--kill-on-bad-exit=0", "--wait=300", "--cpu-bind=none"]


@pytest.mark.parametrize(
    "code, state, requeued",
    [
        *((code, "RUNNING", False) for code in (0, 1, 2, 3, 4, 5)),
        (75, "RUNNING", True),
        (137, "RUNNING", True),
        (75, "COMPLETING", False),  # cancelled, or preempted: Slurm itself has decided
    ],
)
def test_slurm_requeues_what_can_go_on(slurm, code, state, requeued):
    slurm.srun(f"exit {code}")
    recorder(slurm.folder / "bin" / "squeue", slurm.calls, f"echo {state}")
    ended, calls = slurm.run("--config=digits", "--workdir=w")
    assert ended == code, "the exit code is not passed on"
    assert (REQUEUE in calls) == requeued, slurm.done.stdout


def test_slurm_gives_up_what_gets_nowhere(slurm):
    slurm.srun("exit 137")

    def requeued():
        return REQUEUE in slurm.run("--config=digits", "--workdir=w", MAX_FRUITLESS="3")[1]

    assert [requeued(), requeued()] == [True, True]
    (slurm.folder / "w" / "checkpoints" / "50").mkdir(parents=True)
    assert [requeued(), requeued(), requeued()] == [True, True, False], "a new checkpoint must start the count anew"
    assert "same checkpoint (50)" in slurm.done.stderr


def test_slurm_passes_sigterm_on_and_sees_how_the_step_ends(slurm):
    # As the real one, srun kills its tasks if it is signalled itself; scancel signals them.
    slurm.srun("trap 'exit 137' TERM; touch started; while [ ! -e told ]; do sleep 0.05; done; sleep 0.3; exit 75")
    recorder(slurm.folder / "bin" / "scancel", slurm.calls, "touch told")
    path = f"{slurm.folder / 'bin'}:{os.environ['PATH']}"
    environment = os.environ | slurm.environment | {"PATH": path, "VENV": str(slurm.folder / "venv")}
    job = subprocess.Popen(["bash", slurm.script, "--workdir=w"], env=environment, cwd=slurm.folder)
    wait_for((slurm.folder / "started").exists, "start of the job")
    time.sleep(0.2)  # from the step's start until the script waits for it
    job.send_signal(signal.SIGTERM)
    assert job.wait(30) == 75
    assert ["scancel", "--signal=TERM", "7"] in lines_of(slurm.calls)
    assert REQUEUE in lines_of(slurm.calls)


def test_slurm_dry_run_runs_nothing(slurm):
    for environment in ({}, {"SLURM_JOB_ID": ""}):
        code, calls = slurm.run("--dry-run", "--workdir=w", *ODD_WORDS, **environment)
        assert code == 0 and calls == [], f"{slurm.done.stderr} {calls}"
        submit, step = [shlex.split(line) for line in slurm.done.stdout.splitlines()]
        assert submit == ["sbatch", f"{ROOT}/launch/slurm.sbatch", "--workdir=w", *ODD_WORDS]
        assert step[0] == "srun" and step[-4:] == ["--workdir=w", *ODD_WORDS]


def test_slurm_says_what_is_missing(slurm):
    code, calls = slurm.run("--workdir=w", SLURM_JOB_ID="")
    assert code == 2 and calls == [] and "sbatch launch/slurm.sbatch" in slurm.done.stderr
    code, calls = slurm.run("--workdir=w", STCE_ROOT="/nowhere")
    assert code == 2 and calls == [] and "STCE_ROOT=" in slurm.done.stderr


# Starts what follows its options twice, with the variables that Slurm gives the tasks of a step on two nodes.
TWO_TASKS = """
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=2 SLURM_STEP_TASKS_PER_NODE='1(x2)'
tasks=()
for number in 0 1; do
  export SLURM_PROCID=$number SLURM_NODEID=$number SLURM_LOCALID=0
  "$@" &
  tasks+=($!)
done
trap 'kill -TERM "${tasks[@]}"' TERM
highest=0
for task in "${tasks[@]}"; do
  code=0
  wait "$task" || code=$?
  if [ $code -gt $highest ]; then highest=$code; fi
done
exit $highest
"""


def test_slurm_starts_each_process_with_its_number(slurm):
    told = "$SLURM_JOB_ID $SLURM_NTASKS $SLURM_PROCID $SLURM_LOCALID $SLURM_STEP_NODELIST"
    stand_in(
        slurm.folder / "venv" / "bin" / "python",
        f'echo "{told} $*" >> {slurm.folder}/ran\nexit $((3 * SLURM_PROCID))',
    )
    slurm.srun(TWO_TASKS)
    code, calls = slurm.run("--config=digits", "--workdir=w")
    ran = (slurm.folder / "ran").read_text().splitlines()
    words = "-P -m stce_jax train --config=digits --workdir=w"
    assert sorted(ran) == [f"7 2 {number} 0 localhost {words}" for number in (0, 1)]
    assert code == 3 and REQUEUE not in calls, "the highest exit code decides"


def test_slurm_starts_two_processes_that_train_together(slurm, tiny_process_run, data_dir):
    stand_in(slurm.folder / "venv" / "bin" / "python", f'exec {sys.executable} "$@"')
    slurm.srun(TWO_TASKS)
    workdir = slurm.folder / "run"
    job = str(os.getpid())  # JAX takes the coordinator's port from it
    # Half an epoch, in which the learning rate warms up as it does in the run of one.
    words = (*TINY, "--config.epochs=0.5", f"--workdir={workdir}", f"--data_dir={data_dir}")
    code, _ = slurm.run(*words, SLURM_JOB_ID=job, JAX_NUM_CPU_DEVICES="1", PYTHONPATH=str(ROOT))
    assert code == 0, slurm.done.stderr
    together = [(line["step"], line["split"], line["loss"]) for line in metrics(workdir)]
    assert [line[:2] for line in together] == [(20, "train"), (22, "train"), (22, "eval")], "both write metrics"
    [alone] = [line["loss"] for line in metrics(tiny_process_run[0]) if (line["step"], line["split"]) == (20, "train")]
    assert together[0][2] == pytest.approx(alone, rel=1e-5), "two processes do not train the run of one"


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


# detached.sh


def test_a_detached_command_outlives_its_connection_and_is_followed(tmp_path):
    waits = "echo begun; touch started; while [ ! -e go ]; do sleep 0.05; done; echo ended; exit 3"
    command = ["bash", LAUNCH / "detached.sh", "run", "bash", "-c", waits]
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, start_new_session=True)
    wait_for((tmp_path / "started").exists, "start of the job")
    os.killpg(first.pid, signal.SIGKILL)  # as sshd does with what is left of a connection
    first.communicate()

    other = launch(tmp_path, LAUNCH / "detached.sh", "run", "echo", "else")
    assert other.returncode == 2 and "something else runs here already: bash -c" in other.stderr
    second = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert "following it" in second.stdout.readline()
    (tmp_path / "go").touch()
    shown = second.stdout.read()  # not by communicate, which loses what readline has read ahead
    second.wait(timeout=30)
    assert (shown, second.returncode) == ("begun\nended\n", 3), "output or exit code is lost"


def test_a_detached_command_is_started_anew_after_it_ended(tmp_path):
    (tmp_path / "count").write_text("")

    def run(code):
        text = f"echo >> count; wc -l < count; exit {code}"
        return launch(tmp_path, LAUNCH / "detached.sh", "run", "bash", "-c", text)

    assert [run(code).returncode for code in (0, 75, 1)] == [0, 75, 70], "1 must not look like gcloud's own failure"
    assert run(0).stdout == "4\n", "the output of earlier runs is shown again"
    killed = launch(tmp_path, LAUNCH / "detached.sh", "run", "bash", "-c", "kill -KILL $PPID")
    assert killed.returncode == 137


# tpu_pod.sh

GCLOUD = """
next() { head -n 1 "$1"; sed -i 1d "$1"; }
case "$*" in
  *" queued-resources list "*) next states ;;
  *" scp "*) mkdir -p home; cp "$5" home/stce.tar.gz ;;
  *" ssh "*)
    if [ -e codes ]; then exit "$(next codes)"; fi
    cd home
    HOME=$PWD bash -c "${!##--command=}" ;;
  "storage ls "*) echo "${3}10/" ;;
esac
"""
POD = ("--name=pod", "--zone=z", "--type=v5litepod-16", "--version=r", "--setup=true")
RUN = ("--config=digits", "--workdir=gs://b/run")


class Pod:
    """Google's cloud as scripted: the states that the resource is seen in, the exit codes of runs."""

    def __init__(self, folder):
        self.folder, self.calls = folder, folder / "calls"
        recorder(folder / "bin" / "gcloud", self.calls, GCLOUD)
        stand_in(folder / "bin" / "nvidia-smi", "exit 1")
        self.scripted()

    def scripted(self, *states, codes=None):
        (self.folder / "states").write_text("\n".join(states) + "\n")
        (self.folder / "codes").unlink(missing_ok=True)
        if codes:
            (self.folder / "codes").write_text("\n".join(map(str, codes)) + "\n")

    def run(self, *words):
        """(exit code, the verbs called) of tpu_pod.sh."""
        self.calls.unlink(missing_ok=True)
        self.done = launch(self.folder, LAUNCH / "tpu_pod.sh", *words, POLL_SECONDS="0.01")
        self.called = lines_of(self.calls)
        return self.done.returncode, [call[2] if call[1] == "storage" else call[4] for call in self.called]


@pytest.fixture
def pod(tmp_path):
    return Pod(tmp_path)


def test_tpu_asks_waits_runs_and_goes_on_after_a_preemption(pod):
    pod.scripted("", "", "ACCEPTED", "PROVISIONING", "ACTIVE", "SUSPENDING", "SUSPENDED", "", "ACTIVE", codes=[75, 0])
    code, verbs = pod.run(*POD, "--spot", "--project=p", "--", *RUN)
    assert code == 0, pod.done.stderr
    first = ["list", "list", "create", "list", "list", "list", "scp", "ssh", "ls"]
    again = ["list", "list", "delete", "list", "create", "list", "scp", "ssh"]
    assert verbs == first + again
    create, remove = pod.called[2], pod.called[11]
    assert set(create[6:]) == {
        *("--node-id=pod", "--zone=z", "--project=p", "--accelerator-type=v5litepod-16", "--runtime-version=r"),
        "--spot",
    }
    assert create[5] == remove[5] == "pod" and {"--force", "--quiet"} < set(remove)
    for call in (call for call in pod.called if "tpu-vm" in call):
        assert {"--worker=all", "--zone=z", "--project=p"} < set(call)
    assert "is kept, and costs money" in pod.done.stdout


def test_tpu_takes_one_that_is_there_and_deletes_it_when_told(pod):
    pod.scripted("ACTIVE", "ACTIVE", codes=[0])
    assert pod.run(*POD, "--delete", "--", *RUN) == (0, ["list", "list", "scp", "ssh", "delete"])
    assert pod.run("--name=pod", "--zone=z", "--delete") == (0, ["delete"])


@pytest.mark.parametrize("code, ended", [(2, 2), (3, 3), (4, 4), (5, 5), (70, 1)])
def test_tpu_passes_final_codes_on(pod, code, ended):
    pod.scripted("ACTIVE", "ACTIVE", codes=[code])
    assert pod.run(*POD, "--", *RUN) == (ended, ["list", "list", "scp", "ssh"])


@pytest.mark.parametrize("code", [1, 75, 137, 255])
def test_tpu_gives_up_what_gets_nowhere(pod, code):
    pod.scripted(*["ACTIVE"] * 9, codes=[code] * 9)
    ended, verbs = pod.run(*POD, "--", *RUN)
    assert ended == code and verbs.count("ssh") == 5
    assert "same checkpoint (10)" in pod.done.stderr


def test_tpu_ends_when_the_request_fails(pod):
    pod.scripted("ACCEPTED", "ACCEPTED", "FAILED")
    code, verbs = pod.run(*POD, "--", *RUN)
    assert code == 1 and "describe pod" in pod.done.stderr and "create" not in verbs


def test_tpu_workers_run_the_checkout_with_all_words(pod):
    """The command for the workers is run for real, in a home directory of its own."""
    python = pod.folder / "home" / "stce.venv" / "bin" / "python"
    recorder(python, pod.folder / "ran", '[[ "$*" != *train* ]] || exit 4')
    (pod.folder / "home" / "stce").mkdir()
    (pod.folder / "home" / "stce" / "stale.py").touch()
    pod.scripted("ACTIVE", "ACTIVE")
    code, _ = pod.run(*POD, "--", *RUN, *ODD_WORDS)
    assert code == 4, pod.done.stdout + pod.done.stderr
    install, train = lines_of(pod.folder / "ran")
    assert install[-1] == f"{pod.folder / 'home' / 'stce'}[gcs]", "gs:// needs packages of its own"
    assert train[4] == "train" and train[-5:] == [*RUN, *ODD_WORDS]
    home = pod.folder / "home" / "stce"
    assert (home / "stce_jax" / "cli.py").read_text() == (ROOT / "stce_jax" / "cli.py").read_text()
    assert (home / "configs" / "default.py").exists() and not (home / "stale.py").exists()


def test_tpu_dry_run_runs_nothing(pod):
    code, verbs = pod.run(*POD, "--dry-run", "--", *RUN, *ODD_WORDS)
    assert (code, verbs) == (0, []), pod.done.stderr
    commands = [shlex.split(line) for line in pod.done.stdout.splitlines() if not line.startswith("#")]
    assert [" ".join(words[:5]) for words in commands if words[0] == "gcloud"] == [
        *(f"gcloud compute tpus queued-resources {verb}" for verb in ("list", "create")),
        *(f"gcloud compute tpus tpu-vm {verb}" for verb in ("scp", "ssh")),
        "gcloud compute tpus queued-resources delete",
    ]


def test_tpu_says_what_is_missing(pod):
    for words in (POD[1:], POD[:2], (*POD, "--"), (*POD, "--", "--workdir=/tmp/run"), (*POD, "--workers=3"), ()):
        code, verbs = pod.run(*words)
        assert code == 2 and verbs == [] and len(pod.done.stderr.splitlines()) == 1, f"{words} is taken"


def test_gcloud_knows_every_option(pod):
    if not shutil.which("gcloud"):
        pytest.skip("gcloud is not installed")
    pod.run(*POD, "--project=p", "--spot", "--dry-run", "--", *RUN)
    for line in pod.done.stdout.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["gcloud"]:
            asked = subprocess.run([*words[:5], "--help"], capture_output=True, text=True, timeout=120).stdout
            known = set(re.findall(r"--[a-z][a-z-]*", re.sub(r".\x08", "", asked)))
            used = {word.partition("=")[0] for word in words[5:] if word.startswith("--")}
            assert used <= known, f"{' '.join(words[:5])} does not know {used - known}"


# gke_jobset.yaml

PLACEHOLDERS = {"RUN_NAME", "IMAGE", "SERVICE_ACCOUNT", "BUCKET"}


def jobset(gpus):
    text = (LAUNCH / "gke_jobset.yaml").read_text()
    if gpus:
        (command,) = re.findall(r"\| sed '(s/\^#gpu .*?)'", text)
        text = subprocess.run(["sed", command], input=text, capture_output=True, text=True, check=True).stdout
    return yaml.safe_load(text)


@pytest.mark.parametrize("gpus", [False, True], ids=["tpu", "gpu"])
def test_jobset_restarts_all_hosts_or_fails_for_good(gpus):
    spec = jobset(gpus)["spec"]
    assert spec["failurePolicy"]["maxRestarts"] > 0
    (rule,) = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    (hosts,) = spec["replicatedJobs"]
    job = hosts["template"]["spec"]
    assert job["backoffLimit"] == 0 and job["completionMode"] == "Indexed"
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["operator"] == "In"
    assert rule["onExitCodes"]["values"] == [1, 2, 3, 4, 5]
    pod = job["template"]["spec"]
    (train,) = pod["containers"]
    assert rule["onExitCodes"]["containerName"] == train["name"]
    assert pod["restartPolicy"] == "Never", "Kubernetes refuses a podFailurePolicy with any other"
    assert pod["terminationGracePeriodSeconds"] >= 120
    assert train["command"] == ["stce", "train"]
    assert any(word.startswith("--workdir=gs://") for word in train["args"])


def test_jobset_hosts_and_chips_fit_the_slice():
    job = jobset(gpus=False)["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    rows, columns = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == int(rows) * int(columns) / chips


def test_jobset_gpu_hosts_are_told_where_the_first_is():
    document = jobset(gpus=True)
    (hosts,) = document["spec"]["replicatedJobs"]
    job = hosts["template"]["spec"]
    (train,) = job["template"]["spec"]["containers"]
    environment = {entry["name"]: entry for entry in train["env"]}
    assert environment["JAX_NUM_PROCESSES"]["value"] == str(job["parallelism"]) == str(job["completions"])
    name = document["metadata"]["name"]
    assert environment["JAX_COORDINATOR_ADDRESS"]["value"].startswith(f"{name}-{hosts['name']}-0-0.{name}:")
    assert "job-completion-index" in environment["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert train["resources"]["limits"] == {"nvidia.com/gpu": 8}


def test_jobset_lists_its_placeholders():
    text = (LAUNCH / "gke_jobset.yaml").read_text()
    listed = set(re.findall(r"^#   ([A-Z_]+) {2,}", text, re.MULTILINE))
    document = json.dumps([jobset(gpus=False), jobset(gpus=True)])
    used = {name for name in PLACEHOLDERS if name in document}
    assert listed == used == PLACEHOLDERS


@pytest.mark.parametrize(
    "words, extra", [("--workdir=runs/a", ""), ("--workdir=runs/a --data_dir=gs://bucket/data", "gcs")]
)
def test_remote_storage_has_its_packages_installed(tmp_path, words, extra):
    assert bash(f"source {LAUNCH}/install.sh; storage_extra {words}", tmp_path).strip() == extra


# sweep_skypilot.yaml

SKYPILOT = (LAUNCH / "sweep_skypilot.yaml").read_text()


def test_a_cell_on_a_cloud_lists_what_is_to_be_replaced_and_goes_on_where_it_stopped():
    task = yaml.safe_load(SKYPILOT)
    listed = set(re.findall(r"^#   ([A-Z_]+) {2,}", SKYPILOT, re.MULTILINE))
    assert listed == {mount["source"] for mount in task["file_mounts"].values()} == {"RESULTS", "IMAGES"}
    assert task["envs"]["CELL"] is None, "SkyPilot asks for what has no value"
    assert task["resources"]["use_spot"] is True
    assert task["resources"]["job_recovery"] == {"recover_on_exit_codes": [75]}
    assert task["file_mounts"]["/sweep"]["mode"] == "MOUNT_CACHED", "others cannot append to a file"
    filled = re.search(r"sed '(.+)' launch/sweep_skypilot.yaml", SKYPILOT)[1]
    text = subprocess.run(["sed", filled], input=SKYPILOT, capture_output=True, text=True, check=True).stdout
    sources = [mount["source"] for mount in yaml.safe_load(text)["file_mounts"].values()]
    assert sources == ["s3://my-runs", "s3://my-images"]


@pytest.mark.parametrize("code", [0, 5, 75])
def test_a_cell_on_a_cloud_gets_its_words_and_has_its_exit_code(tmp_path, code):
    recorder(tmp_path / ".venv" / "bin" / "stce", tmp_path / "calls", f"exit {code}")
    task = yaml.safe_load(SKYPILOT)
    quoted = shlex.join(["table8", "--scale=small", *ODD_WORDS])
    for sweep, words in ((task["envs"]["SWEEP"], ["table6", "--seeds=0,1,2"]), (quoted, shlex.split(quoted))):
        (tmp_path / "calls").unlink(missing_ok=True)
        # SkyPilot adds lines of its own, which wait for the bucket and end with the exit code before them.
        script = f"{task['run']}\n__code=$?\ntouch uploaded\nexit $__code"
        environment = os.environ | {"SWEEP": sweep, "CELL": "stce_seed0"}
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == code and (tmp_path / "uploaded").exists(), done.stderr
        ((_, verb, *rest),) = lines_of(tmp_path / "calls")
        assert [verb, *rest] == ["reproduce", *words, "--workdir=/sweep", "--data_dir=/images", "--cell=stce_seed0"]


def test_a_machine_of_a_cloud_is_set_up_by_the_installer(tmp_path):
    python = tmp_path / "python3.12"
    stand_in(python, "[ $1 = -c ]")
    recorder(tmp_path / ".local" / "bin" / "uv", tmp_path / "calls", f"[ $2 != find ] || echo {python}")
    stand_in(tmp_path / "bin" / "nvidia-smi", 'echo "CUDA Version: 13.0"')
    script = "dry_run=yes\n" + yaml.safe_load(SKYPILOT)["setup"]
    for name in ("launch", "pyproject.toml", "requirements.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    said = bash(script, tmp_path, HOME=str(tmp_path), VENV=str(tmp_path / "venv"))
    assert f"{python} -P -m venv {tmp_path}/venv" in said and "[cuda13]" in said
