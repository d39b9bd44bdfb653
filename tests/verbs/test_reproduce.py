"""`stce reproduce`: which cells are run, skipped, left to others or failed; stopped, killed and gone on with."""

import concurrent.futures
import contextlib
import json
import re
import shutil
import sys
import threading
import types
from pathlib import Path

import pytest
from sweep_cells import fail, finish

from stce_jax import cli
from stce_jax.errors import DataError
from stce_jax.reproduce import costs, report
from stce_jax.reproduce.cells import cells_of, load_rows
from stce_jax.workdir.claim import Claim

BOTH = ["table8", "--scale=smoke", "--runs=stce,pooling", "--seeds=0,1"]


@pytest.fixture
def commands(monkeypatch, tmp_path, data_dir):
    """Runs no process: `stce` commands are noted, and do what they do in no time; `fails` says with which code."""
    import stce_jax.verbs.reproduce as verb
    from stce_jax.reproduce import running

    noted = {"words": [], "fails": {}, "signal": None}

    def pretend(words, log, stop):
        noted["words"].append(words)
        directory = Path(log).parent
        if words[1] == "benchmark":
            rows = [
                {"model": str(word), "what": what, "images_per_second": 10.0, "ratio": 1.0, "ratio_margin": None}
                for word in words[2:]
                if not word.startswith("--")
                for what in ("inference", "training")
            ]
            more = {"batch_size": 64, "dtype": "float32", "device": "cpu", "error": ""}
            Path(words[-1].partition("=")[2]).write_text(json.dumps([row | more for row in rows]))
            return 0, ""
        if words[1] == noted["signal"]:
            stop.requested = "SIGTERM"
            return 75, "stopped by SIGTERM"
        if code := noted["fails"].get(directory.name):
            return code, "it went wrong"
        if words[1] == "evaluate":
            rows = [row for table in ("table6", "table8") for row in load_rows(table, "smoke")]
            cells = {cell.directory.name: cell for cell in cells_of(rows, [0, 1, 2], directory.parents[1])}
            finish(cells[directory.name], [True, False] * 5)
        return 0, ""

    monkeypatch.setattr(verb, "run_command", pretend)
    monkeypatch.setattr(running, "run_command", pretend)
    monkeypatch.setattr(running, "describe_place", lambda: "nowhere")
    monkeypatch.setattr(report, "cost_rows", lambda *_: [{"row": "none"}])  # counting is slow, and tested elsewhere
    monkeypatch.setenv("XDG_DATA_HOME", str(data_dir))
    return noted


def run(capsys, tmp_path, *words):
    """(exit code, standard output, standard error) of `stce reproduce WORDS... --workdir=tmp_path/sweep`."""
    with pytest.raises(SystemExit) as end:
        cli.main(["reproduce", *map(str, words), f"--workdir={tmp_path / 'sweep'}"])
    captured = capsys.readouterr()
    return end.value.code, captured.out, captured.err


def trained(commands):
    """Names of the cells that were trained, in order."""
    return [words[-1].rpartition("/")[2] for words in commands["words"] if words[1] == "train"]


def test_each_cell_is_trained_then_evaluated_seed_by_seed(capsys, tmp_path, commands):
    code, out, error = run(capsys, tmp_path, *BOTH)
    assert code == 0, error
    assert trained(commands) == ["pooling_seed0", "stce_seed0", "pooling_seed1", "stce_seed1"]
    assert [words[1] for words in commands["words"]] == ["train", "evaluate"] * 4 + ["benchmark"]
    assert "4/4  stce_seed1: top-1 50.00%" in out and out.splitlines()[-1].startswith("report in ")
    text = (tmp_path / "sweep" / "report.md").read_text()
    assert "4 of 4 runs are finished" in text and (tmp_path / "sweep" / "report.html").exists()


@pytest.mark.slow
def test_what_is_finished_is_not_done_again(capsys, tmp_path, commands):
    assert run(capsys, tmp_path, *BOTH)[0] == 0
    commands["words"].clear()
    code, out, error = run(capsys, tmp_path, *BOTH)
    assert code == 0 and commands["words"] == [], f"done again: {commands['words']} {error}"
    assert out.splitlines()[0].startswith("report in ")
    code, *_ = run(capsys, tmp_path, *BOTH[:-1], "--seeds=0,1,2")
    assert code == 0 and trained(commands) == ["pooling_seed2", "stce_seed2"], "one more seed did not train just that"
    assert all(words[1] != "benchmark" for words in commands["words"]), "the same models were timed again"
    run(capsys, tmp_path, "table8", "--scale=smoke", "--runs=stce,iterations_1", "--seeds=0")
    assert trained(commands)[-1] == "iterations_1_seed0" and commands["words"][-1][1] == "benchmark"


def test_speeds_are_kept_by_run_and_runs_of_one_model_are_timed_once(capsys, tmp_path, commands):
    words = ("table6", "--scale=smoke", "--runs=patch,stce,patch_500", "--seeds=0")
    assert run(capsys, tmp_path, *words)[0] == 0
    timed = [word.rpartition("/")[2] for word in commands["words"][-1][2:] if not word.startswith("--")]
    assert timed == ["patch_seed0", "stce_seed0"]
    speed = costs.read_speed(tmp_path / "sweep", ["table6", "table7"])
    assert {row["model"] for row in speed["table6"]} == {"patch", "stce", "patch_500"} and "table7" not in speed


def test_a_failed_cell_does_not_stop_the_rest_and_is_tried_again(capsys, tmp_path, commands):
    commands["fails"] = {"pooling_seed0": 5}
    code, out, error = run(capsys, tmp_path, *BOTH)
    assert code == 5 and re.fullmatch(r"stce: 1 of 4 cells failed \(pooling_seed0\); .*/report.md says why\n", error)
    assert trained(commands) == ["pooling_seed0", "stce_seed0", "pooling_seed1", "stce_seed1"]
    assert "1/4  pooling_seed0: it went wrong" in out
    text = (tmp_path / "sweep" / "report.md").read_text()
    assert "`pooling` seed 0: it went wrong" in text and "3 of 4 runs are finished" in text
    commands["fails"] = {}
    commands["words"].clear()
    assert run(capsys, tmp_path, *BOTH)[0] == 0 and trained(commands) == ["pooling_seed0"]


def test_a_cell_that_another_job_is_at_work_on_is_left_to_it(capsys, tmp_path, commands):
    cells = {cell.directory.name: cell for cell in cells_of(load_rows("table8", "smoke"), [0], tmp_path / "sweep")}
    with Claim(cells["stce_seed0"].claim):
        code, out, error = run(capsys, tmp_path, *BOTH)
    assert code == 0, error
    assert trained(commands) == ["pooling_seed0", "pooling_seed1", "stce_seed1"]
    assert "stce_seed0: left out" in out and "1 cells are another job's; run again once it is done" in out
    commands["words"].clear()
    assert run(capsys, tmp_path, *BOTH)[0] == 0 and trained(commands) == ["stce_seed0"]


def test_a_signal_stops_the_sweep_and_no_time_is_lost(capsys, tmp_path, commands):
    commands["signal"] = "evaluate"
    code, _, error = run(capsys, tmp_path, *BOTH)
    assert (
        code == 75 and error == "stce: stopped by SIGTERM in pooling_seed0, whose state is saved; run again to resume\n"
    )
    assert trained(commands) == ["pooling_seed0"], "it went on after the signal"
    record = json.loads((tmp_path / "sweep" / "cells" / "pooling_seed0" / "cell.json").read_text())
    record["seconds"] = 100.0
    (tmp_path / "sweep" / "cells" / "pooling_seed0" / "cell.json").write_text(json.dumps(record))
    commands["signal"] = None
    code, out, _ = run(capsys, tmp_path, *BOTH)
    (seconds,) = re.findall(r"1/4  pooling_seed0: top-1 50.00%  \((\d+) s\)", out)
    assert code == 0 and 100 <= int(seconds) < 160, "the seconds before the stop do not count"


@pytest.mark.slow
@pytest.mark.parametrize(
    "words, code, named",
    [
        (("table2",), 2, "there is no table 'table2'; there are table1, table6"),
        (("table6", "--scale=big"), 2, "there is no scale 'big'; there are paper, medium_128, medium, small"),
        (("table6", "--scale=smoke", "--runs=patch,stec"), 2, "there is no run 'stec'; there are patch, conv, stce"),
        (("table6", "--scale=smoke", "--seeds=0,x"), 2, "--seeds=0,x must be whole numbers"),
        (("table6", "--scale=smoke", "--seeds=-1"), 2, "config.seed is -1"),
        (("table6", "--scale=smoke", "--config.sed=1"), 2, "did you mean 'seed'?"),
        (("table6", "--scale=smoke", "--config.model.body.vit.heads=5"), 2, "cannot be divided among 5 heads"),
        (("table6", "--scale=smoke", "--sale=smoke"), 2, "did you mean --scale=smoke?"),
        (("table6", "--scale=smoke", "--config.epochs=2"), 2, "would undo what makes 'patch_500' that row"),
        (("table6", "--scale=small", "--config.task=multi_label"), 2, "the tables are of images with one label each"),
        (
            ("table8", "--scale=smoke", "--config.model.embedding.stce.iterations=2"),
            2,
            "would undo what makes 'pooling' that row",
        ),
        (("table8", "--scale=smoke", "--config.seed=2"), 2, "--config.seed=2: give --seeds instead"),
        (("table1", "--config.nonsense=1"), 2, "unknown config key in '--config.nonsense=1'"),
        (("table6", "--scale=small"), 2, "needs --data_dir=DIR"),
        (("table6", "--scale=small", "--data_dir=/no/where"), 3, "/no/where has no folder 'train'"),
        (("table6",), 3, "is not prepared in"),
    ],
)
def test_refusals(capsys, tmp_path, commands, words, code, named):
    found, out, error = run(capsys, tmp_path, *words)
    assert found == code, error
    assert named in error and re.fullmatch(r"stce: .*\n", error), f"not one line: {error!r}"
    assert out == "" and not (tmp_path / "sweep").exists() and not commands["words"], "something was done"


@pytest.mark.slow
def test_a_workdir_holds_one_sweep(capsys, tmp_path, commands):
    assert run(capsys, tmp_path, *BOTH)[0] == 0
    for words, told in (
        (["table1", "--scale=paper"], "holds a sweep of scale smoke, not of scale paper;"),
        ([*BOTH, "--config.epochs=2"], "holds a sweep of scale smoke, not of scale smoke --config.epochs=2;"),
    ):
        code, _, error = run(capsys, tmp_path, *words)
        assert code == 2 and told in error
    sweep = tmp_path / "sweep" / "sweep.json"
    sweep.write_text(json.dumps(json.loads(sweep.read_text()) | {"images": "others"}))
    code, _, error = run(capsys, tmp_path, *BOTH)
    assert code == 2 and "holds a sweep on other images; give the --data_dir it began with" in error
    for damaged in ("{", "{}", "[]"):
        sweep.write_text(damaged)
        code, _, error = run(capsys, tmp_path, *BOTH)
        assert code == 2 and "sweep.json is damaged" in error, f"{damaged}: {error}"


@pytest.mark.slow
def test_jobs_that_begin_and_end_at_once_do_each_cell_once(capsys, tmp_path, commands, monkeypatch):
    """Six threads stand for six machines; all of them write the report."""
    import stce_jax.verbs.reproduce as verb

    monkeypatch.setattr(verb, "StopSignals", lambda: contextlib.nullcontext(types.SimpleNamespace(requested="")))
    words = {"scale": "smoke", "seeds": (0, 1), "only": ("stce", "pooling")}
    barrier = threading.Barrier(6)

    def job(_):
        barrier.wait()
        return verb.reproduce("table8", tmp_path / "sweep", **words)

    with concurrent.futures.ThreadPoolExecutor(6) as jobs:
        assert set(jobs.map(job, range(6))) == {tmp_path / "sweep" / "report.md"}
    assert sorted(trained(commands)) == ["pooling_seed0", "pooling_seed1", "stce_seed0", "stce_seed1"]
    assert [words[1] for words in commands["words"]].count("benchmark") <= 2, "each job timed the models"
    assert "4 of 4 runs are finished" in (tmp_path / "sweep" / "report.md").read_text()


@pytest.mark.parametrize("name", ["claims", "cells"])
def test_a_workdir_that_cannot_be_written_is_no_other_job(capsys, tmp_path, commands, name):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / name).write_text("a file in the way")
    code, _, error = run(capsys, tmp_path, *BOTH)
    assert code == 2 and re.fullmatch(r"stce: cannot .*\n", error), error
    assert not commands["words"]


def test_a_disk_that_fills_fails_the_cell_in_one_line(capsys, tmp_path, commands, monkeypatch):
    from stce_jax.reproduce import running

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(running, "_write_record", full)
    code, out, error = run(capsys, tmp_path, *BOTH[:-1], "--seeds=0")
    assert code == 2 and "2 of 2 cells failed" in error and out.count("No space left on device") == 2


@pytest.mark.slow
def test_a_run_that_a_dead_sweep_left_behind_is_waited_for(capsys, tmp_path, commands, monkeypatch):
    from stce_jax.reproduce import running

    first = tmp_path / "sweep" / "cells" / "pooling_seed0"
    with Claim(first):
        monkeypatch.setattr(running, "PATIENCE", 0.1)
        code, out, error = run(capsys, tmp_path, *BOTH[:-1], "--seeds=0")
    assert code == 0 and trained(commands) == ["stce_seed0"] and "pooling_seed0: left out" in out, error
    release = threading.Timer(1.0, lambda: claim.__exit__(None, None, None))
    claim = Claim(first)
    claim.__enter__()
    monkeypatch.setattr(running, "PATIENCE", 30.0)
    release.start()
    assert run(capsys, tmp_path, *BOTH[:-1], "--seeds=0,0")[0] == 0 and trained(commands)[-1] == "pooling_seed0"


def test_several_processes_and_remote_workdirs_are_refused(capsys, tmp_path, commands, monkeypatch):
    with pytest.raises(SystemExit) as end:
        cli.main(["reproduce", *BOTH, "--workdir=gs://bucket/sweep"])
    assert end.value.code == 2 and "needs a local directory" in capsys.readouterr().err
    for name, value in (("COORDINATOR_ADDRESS", "localhost:1"), ("NUM_PROCESSES", "2"), ("PROCESS_ID", "0")):
        monkeypatch.setenv(f"JAX_{name}", value)
    code, _, error = run(capsys, tmp_path, *BOTH)
    assert code == 2 and "start it once a machine" in error


@pytest.mark.slow
def test_table_1_needs_no_images_and_no_runs(capsys, tmp_path):
    code, _, error = run(capsys, tmp_path, "table1")
    assert code == 0, error
    text = (tmp_path / "sweep" / "report.md").read_text()
    assert "| convolution | 1.00M | 3,490,560 | 3.49 |" in text and not (tmp_path / "sweep" / "cells").exists()


# --list, --cell, --report

NAMES = ["pooling_seed0", "stce_seed0", "pooling_seed1", "stce_seed1"]


def cells_in(tmp_path):
    """{name: cell} of `BOTH`."""
    rows = [row for row in load_rows("table8", "smoke") if row.run in ("stce", "pooling")]
    return {cell.directory.name: cell for cell in cells_of(rows, [0, 1], tmp_path / "sweep")}


def test_cells_are_listed_in_order_with_their_states_and_nothing_is_made(capsys, tmp_path, monkeypatch):
    code, out, error = run(capsys, tmp_path, *BOTH, "--list")
    assert (code, out.splitlines(), error) == (0, NAMES, "") and not (tmp_path / "sweep").exists()
    cells = cells_in(tmp_path)
    finish(cells["stce_seed0"], [True, False] * 5)
    fail(cells["pooling_seed1"], "out of \x1b[31mmemory", 137)
    (cells["stce_seed1"].directory).mkdir()
    record = {"exit_code": 75, "error": "running", "seconds": 3.0, "place": "node7"}  # of a job that was killed
    (cells["stce_seed1"].directory / "cell.json").write_text(json.dumps(record))
    assert run(capsys, tmp_path, *BOTH, "--list")[1].splitlines() == NAMES, "not all are listed"
    assert run(capsys, tmp_path, *BOTH, "--list=stopped,failed")[1].splitlines() == ["pooling_seed1", "stce_seed1"]
    assert run(capsys, tmp_path, *BOTH, "--list=running")[:2] == (0, "")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    with Claim(cells["pooling_seed0"].claim):
        code, out, _ = run(capsys, tmp_path, *BOTH, "--list")
    running, done, failed, stopped, counts = out.splitlines()
    assert code == 0 and re.match(r"pooling_seed0  running  process \d+ on ", running), out
    assert done.split() == ["stce_seed0", "done", "top-1", "50.00%"] and stopped.split() == ["stce_seed1", "stopped"]
    assert failed == "pooling_seed1  failed   out of \\x1b[31mmemory", "a record may steer the terminal"
    assert counts == "4 cells: 1 done, 1 running, 1 stopped, 1 failed"
    lock = cells["pooling_seed0"].claim / "lock"
    lock.write_text('{"host": "node7", "pid": 1, "started": "now"}')  # of a job that was killed
    assert run(capsys, tmp_path, *BOTH, "--list=planned")[1].split()[:2] == ["pooling_seed0", "planned"]


def test_one_cell_is_trained_and_once_only(capsys, tmp_path, commands, monkeypatch):
    code, out, error = run(capsys, tmp_path, *BOTH, "--cell=stce_seed1")
    assert code == 0 and out.splitlines()[-1].startswith("stce_seed1: top-1 50.00%  ("), error
    assert trained(commands) == ["stce_seed1"] and [words[1] for words in commands["words"]] == ["train", "evaluate"]
    assert not (tmp_path / "sweep" / "report.md").exists()
    monkeypatch.setattr("stce_jax.training.assemble.open_dataset", None)  # not even the images are needed
    assert run(capsys, tmp_path, *BOTH, "--cell=stce_seed1")[:2] == (0, "stce_seed1: done before: top-1 50.00%\n")
    assert len(commands["words"]) == 2
    code, _, error = run(capsys, tmp_path, "table8", "--scale=small", "--cell=stce_seed1")
    assert code == 2 and "holds a sweep of scale smoke, not of scale small" in error


def test_the_exit_code_of_a_cell_is_its_commands(capsys, tmp_path, commands, monkeypatch):
    for expected in (5, 137):
        commands["fails"] = {"stce_seed0": expected}
        code, _, error = run(capsys, tmp_path, *BOTH, "--cell=stce_seed0")
        log = tmp_path / "sweep" / "cells" / "stce_seed0" / "log.txt"
        assert (code, error) == (expected, f"stce: stce_seed0 failed: it went wrong; see {log}\n")
    commands["fails"], commands["signal"] = {}, "train"
    code, _, error = run(capsys, tmp_path, *BOTH, "--cell=stce_seed0")
    assert code == 75 and "stopped by SIGTERM in stce_seed0, whose state is saved; run again" in error
    commands["signal"] = None
    assert run(capsys, tmp_path, *BOTH, "--cell=stce_seed0")[0] == 0

    def missing(*_):
        raise DataError("no images here")

    monkeypatch.setattr("stce_jax.training.assemble.open_dataset", missing)
    assert run(capsys, tmp_path, *BOTH, "--cell=stce_seed1")[0] == 3


@pytest.mark.parametrize(
    "words, named",
    [
        (["--cell=stec_seed0"], "there is no cell 'stec_seed0'; did you mean stce_seed0 or stce_seed1"),
        (["--cell=stce_seed7"], "there is no cell 'stce_seed7'; --seeds=0,1 has no such seed"),
        (["--cell=stce_seed01"], "--seeds=0,1 has no such seed"),
        (["--cell=patch"], "--list prints those that there are"),
        (["--cell="], "--list prints those that there are"),
        (["--cell=../../stce_seed0"], "there is no cell '../../stce_seed0'"),
        (["--list=ready"], "--list='ready' must be of done, running, stopped, failed, planned"),
        (["--list", "--cell=stce_seed0"], "not allowed with argument --list"),
        (["--cell=stce_seed0", "--config.epochs=x"], "bad value"),
        (["--cell=stce_seed0", "--config.model.embedding.stce.iterations=2"], "would undo what makes 'pooling'"),
        (["--report"], "there is no sweep in"),
        (["--gpus=1"], "--gpus is for jobs; give --submit=slurm, too"),
        (["--submit=pbs"], "--submit is 'pbs'; it must be one of slurm, local"),
        (["--submit=local", "--partition=gpu"], "--partition, --cpus and --sbatch are for --submit=slurm"),
        (["--submit=slurm", "--time=soon"], "--time='soon' must be minutes, HOURS:MM:SS or DAYS-HOURS:MM:SS"),
        (["--submit=slurm", "--time=1"], "--time is 1; it must be a whole number between 5 and"),
        (["--submit=slurm", "--parallel=0"], "--parallel is 0"),
        (["--submit=slurm", "--partition=a\nrm b"], "characters that cannot be printed"),
        (["--submit=slurm", "--sbatch=array=1-9"], "--submit says that itself"),
        (["--submit=slurm", "--sbatch=gpus-per-node=2"], "give --gpus instead"),
        (["--submit=slurm", "--sbatch=mem 3"], "must be a long option of sbatch"),
    ],
)
def test_refusals_of_single_cells_and_jobs(capsys, tmp_path, commands, words, named):
    code, out, error = run(capsys, tmp_path, *BOTH, *words)
    assert code == 2 and named in error and re.fullmatch(r"stce: .*\n", error), error
    assert out == "" and not (tmp_path / "sweep").exists() and not commands["words"], "something was done"


def test_a_cell_that_another_job_is_at_work_on_is_waited_for_and_left(capsys, tmp_path, commands, monkeypatch):
    from stce_jax.reproduce import running

    cell = cells_in(tmp_path)["stce_seed0"]
    monkeypatch.setattr(running, "PATIENCE", 0.1)
    with Claim(cell.claim):
        code, out, error = run(capsys, tmp_path, *BOTH, "--cell=stce_seed0")
    assert code == 0 and not commands["words"], error
    assert re.search(r"^stce_seed0: process \d+ on .*, is at work on it; waiting up to 0 s$", out, re.MULTILINE)
    assert out.splitlines()[-1].startswith("stce_seed0: left to the job that is at work on it: ")
    # One that is ending, as a job that was killed and is started again finds it.
    claim = Claim(cell.claim)
    claim.__enter__()
    monkeypatch.setattr(running, "PATIENCE", 30.0)
    threading.Timer(0.3, lambda: claim.__exit__(None, None, None)).start()
    assert run(capsys, tmp_path, *BOTH, "--cell=stce_seed0")[0] == 0 and trained(commands) == ["stce_seed0"]


def test_a_report_of_what_there_is_trains_and_times_nothing(capsys, tmp_path, commands):
    assert run(capsys, tmp_path, *BOTH, "--cell=stce_seed0")[0] == 0
    commands["words"].clear()
    code, out, error = run(capsys, tmp_path, *BOTH, "--report")
    assert code == 0 and out.startswith("report in ") and not commands["words"], error
    assert "1 of 4 runs are finished" in (tmp_path / "sweep" / "report.md").read_text()


def test_cells_that_were_trained_elsewhere_are_counted_once_they_are_copied(capsys, tmp_path, commands):
    for number, name in enumerate(NAMES):  # each on a machine of its own, without a shared file system
        assert run(capsys, tmp_path / str(number), *BOTH, f"--cell={name}")[0] == 0
        cell = tmp_path / str(number) / "sweep" / "cells" / name
        shutil.copytree(cell, tmp_path / "sweep" / "cells" / name, ignore=shutil.ignore_patterns("checkpoints"))
    commands["words"].clear()
    assert run(capsys, tmp_path, *BOTH, "--report")[0] == 0 and not commands["words"]
    assert "4 of 4 runs are finished" in (tmp_path / "sweep" / "report.md").read_text()


def test_without_submitit_one_line_says_how_to_install_it(capsys, tmp_path, commands, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    code, _, error = run(capsys, tmp_path, *BOTH, "--submit=slurm")
    assert (code, error) == (2, 'stce: --submit needs submitit: pip install "stce_jax[submit]"\n')
    assert not (tmp_path / "sweep").exists()
