"""The commands and options of jobs; `tests/slow/test_jobs.py` runs some."""

import io
import os
import pickle
import shlex
import sys
import types
from pathlib import Path

import pytest

import stce_jax
from stce_jax.cli import make_parser
from stce_jax.commands import reproduce as command
from stce_jax.errors import ConfigError
from stce_jax.reproduce import cell_job, jobs
from stce_jax.reproduce.sweep import Sweep

# What a shell, argparse or a list with commas might take apart.
ODD = 'it\'s "odd" $HOME `id` \\ ; * = --list'


def parsed(words, monkeypatch):
    """(the `Sweep` that `stce WORDS...` works on, name of the cell) by the command's own reading."""
    found = []
    module = types.SimpleNamespace(run_cell=lambda sweep, name: found.append((sweep, name)) or "")
    monkeypatch.setitem(sys.modules, "stce_jax.verbs.reproduce", module)
    monkeypatch.setattr("stce_jax.verbs.reproduce", module, raising=False)
    monkeypatch.setattr("stce_jax.platform.jax_settings.use_cpus_only", lambda: None)
    arguments, rest = make_parser().parse_known_args(words)
    command.run(arguments, rest)
    return found[0]


@pytest.mark.parametrize(
    "sweep",
    [
        Sweep("table6", "/runs/x"),
        Sweep("all", f"/runs/{ODD}", "small", (3,), f"/images/{ODD}", ("patch", "stce"), (f"--config.dataset={ODD}",)),
        Sweep(
            "bodies",
            "/w",
            seeds=(0, 7),
            data_dir="gs://bucket/a b",
            overrides=("--config.a.b=(1, 'x')", "--config.c=", "--noconfig.d", "--config.e", "-1.5"),
        ),
    ],
    ids=["plain", "odd", "overrides"],
)
def test_a_job_is_asked_for_the_very_same_sweep(sweep, monkeypatch):
    words = [*sweep.words(), "--cell=stce_seed3"]
    assert parsed(words[1:], monkeypatch) == (sweep, "stce_seed3")
    assert parsed(shlex.split(shlex.join(words))[1:], monkeypatch) == (sweep, "stce_seed3")
    python, *safe, code, package, verb = jobs.command_of(words)[: -len(words) + 2]
    assert python == sys.executable and safe[0] == "-P" and package == stce_jax.__file__ and verb == "reproduce"
    assert "stce_jax" in code and jobs.command_of(words)[-len(words) + 1 :] == words[1:]


def test_paths_of_a_job_mean_the_same_in_any_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    found = Sweep("table6", "runs/x", data_dir="~/images").from_anywhere()
    assert (found.workdir, found.data_dir) == (f"{tmp_path}/runs/x", "/home/me/images")
    assert Sweep("table6", "/w").from_anywhere().data_dir == "", "the default place is a job's own"
    assert Sweep("table6", "/w", data_dir="gs://b/c").from_anywhere().data_dir == "gs://b/c"


@pytest.mark.parametrize(
    "text, minutes",
    [("90", 90), ("24:00:00", 1440), ("1:30:00", 90), ("2-12:00:00", 3600), ("0:05:01", 6), ("0", 0)],
)
def test_times_are_read_as_slurm_reads_them(text, minutes):
    assert jobs.read_minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "1:30", "1h", "-5", "1:60:00", "1.5", "٣", "9" * 5000, "1-2"])
def test_other_times_are_refused(text):
    with pytest.raises(ConfigError, match="must be minutes, HOURS:MM:SS"):
        jobs.read_minutes(text)


def test_options_of_sbatch_are_passed_on():
    words = ["account=me", "--mem-per-gpu=32G", "exclusive", "comment=a = b", "qos="]
    expected = {"account": "me", "mem_per_gpu": "32G", "exclusive": True, "comment": "a = b", "qos": ""}
    assert jobs.read_sbatch(words) == expected


@pytest.mark.parametrize("name", ["50%", "a\\b", "a\nb"])
def test_a_workdir_whose_name_is_a_pattern_is_refused(name):
    with pytest.raises(ConfigError, match="give another name"):
        jobs.check_workdir(Path("/runs") / name)
    jobs.check_workdir(Path(f"/runs/{ODD}".replace("\\", "")))


def test_outside_of_slurm_nothing_is_queued_again(monkeypatch):
    for variables in ({}, {"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "7", "SUBMITIT_EXECUTOR": "local"}):
        for name in ("SLURM_JOB_ID", "SUBMITIT_EXECUTOR"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert not cell_job._is_still_running(), f"squeue would be asked in {variables}"


def test_a_job_that_runs_again_does_the_same():
    submitit = pytest.importorskip("submitit")
    job = cell_job.CellJob({"A": "b"})
    again = job.checkpoint(["stce", "reproduce"])
    assert isinstance(again, submitit.helpers.DelayedSubmission) and again.args == (["stce", "reproduce"],)
    assert again.function._variables == {"A": "b"} and type(again.function) is type(job)


def test_a_jobs_process_needs_nothing_of_this_package():
    """What submitit pickles names no module of stce_jax that unpickling would import."""
    pytest.importorskip("submitit")
    import cloudpickle

    cloudpickle.register_pickle_by_value(cell_job)
    try:
        data = cloudpickle.dumps(cell_job.CellJob({}))
    finally:
        cloudpickle.unregister_pickle_by_value(cell_job)
    imported = []

    class Watching(pickle.Unpickler):
        def find_class(self, module, name):
            imported.append(module)
            return super().find_class(module, name)

    assert Watching(io.BytesIO(data)).load()._variables == {}
    assert not [name for name in imported if name.partition(".")[0] == "stce_jax"], imported


def test_each_submission_has_a_folder_of_its_own_and_a_failed_one_has_none(tmp_path):
    with jobs._folder(tmp_path / "jobs") as first, jobs._folder(tmp_path / "jobs") as second:
        assert first != second and first.is_dir() and second.is_dir()
    with pytest.raises(ConfigError), jobs._folder(tmp_path / "jobs") as third:
        raise ConfigError("Slurm says no")
    assert sorted(os.listdir(tmp_path / "jobs")) == sorted([first.name, second.name]) and not third.exists()
    with pytest.raises(ConfigError), jobs._folder(tmp_path / "new"):
        raise ConfigError("Slurm says no")
    assert os.listdir(tmp_path) == ["jobs"]
