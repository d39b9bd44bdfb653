"""`stce watch`: which runs belong together, what becomes of damaged and vanished ones, and how it ends."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from helpers import run_cli, wait_for
from page_checks import check_page

from stce_jax.errors import ConfigError
from stce_jax.verbs import watch as module
from stce_jax.verbs.watch import watch
from stce_jax.workdir import layout
from stce_jax.workdir.config import load_config

LINE = {"step": 22, "epoch": 1.0, "loss": 1.5, "top1": 0.5, "top5": 0.75}


def make_run(workdir, *overrides, evaluations=1, config="digits"):
    workdir.mkdir(parents=True)
    layout.write_config(workdir, load_config(config, [f"--config.{word}" for word in overrides]))
    with open(workdir / "metrics.jsonl", "w") as file:
        for k in range(1, evaluations + 1):
            train = LINE | {"step": 22 * k, "epoch": float(k), "split": "train", "images_per_second": 100.0 * k}
            file.write(json.dumps(train) + "\n" + json.dumps(LINE | train | {"split": "eval"}) + "\n")
    return workdir


@pytest.fixture
def drawn(monkeypatch):
    """The groups of each page that is written."""
    found = []
    write = module.running.write
    monkeypatch.setattr(module.running, "write", lambda groups, **words: found.append(groups) or write(groups, **words))
    return found


def names(groups):
    return {group.label: [row["run"] for row in group.rows] for group in groups}


def test_runs_that_differ_in_their_seed_alone_are_one_group(tmp_path, drawn):
    runs = [make_run(tmp_path / f"stce_seed{seed}", f"seed={seed}") for seed in range(3)]
    runs += [make_run(tmp_path / "again", "seed=1"), make_run(tmp_path / "other", "epochs=3", "seed=1")]
    runs += [make_run(tmp_path / f"{k}", "batch_size=32", f"seed={k}", f"data_dir={k}") for k in range(2)]
    assert watch(runs, tmp_path / "page.html", once=True) == 1
    assert names(drawn[0]) == {
        "stce": ["stce_seed0", "stce_seed1", "stce_seed2"],
        "again": ["again"],  # the same seed twice is no second seed
        "other": ["other"],
        "0 and 1 more": ["0", "1"],
    }
    page = check_page((tmp_path / "page.html").read_text())
    assert page.data["every"] is None, "a page that nobody writes again loads itself again"


def test_a_run_is_followed_while_it_trains_vanishes_and_comes_back(tmp_path, drawn, capsys):
    run, other = make_run(tmp_path / "run"), make_run(tmp_path / "other", "epochs=3", evaluations=3)
    turns = []

    def stopped():
        """Once a page is there, something happens; four pages are written."""
        if len(drawn) > len(turns):
            turns.append(drawn[-1])
            if len(turns) == 1:
                with open(run / "metrics.jsonl", "a") as file:
                    file.write(
                        '{"step": 44, "epo\n' + json.dumps(LINE | {"step": 44, "epoch": 2.0, "split": "eval"}) + "\n"
                    )
            elif len(turns) == 2:
                shutil.move(run, tmp_path / "away")
            elif len(turns) == 3:
                shutil.move(tmp_path / "away", run)
        return len(turns) == 4

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "POLL", 0.01)
        patch.setattr(module, "check_range", lambda *words: None)
        assert watch([run, other], tmp_path / "page.html", every=0.05, stopped=stopped) == 5, (
            "the last page has no reload"
        )
    states = [[row["state"] for group in groups for row in group.rows] for groups in turns]
    assert states[0] == ["in progress", "finished"] and states[1] == states[3] == states[0]
    assert states[2] == ["not readable any more", "finished"]
    epochs = [groups[0].rows[0]["epoch"] for groups in turns]
    assert epochs == [1.0, 2.0, 2.0, 2.0], "what was read of a run is lost with it"
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "line 3 is damaged and left out" in said[0] and "keeps what was read" in said[1], said


def test_the_command(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "<b>run")
    code, out, error = run_cli(capsys, "watch", run, "--once")
    assert (code, out, error) == (0, "watch.html: 1 run\n", "")
    content = (tmp_path / "watch.html").read_text()
    assert "&lt;b&gt;run" in content and "<b>" not in content and "50.00%" in content
    check_page(content)


@pytest.mark.parametrize(
    "words, named",
    [
        (("RUN", "RUN", "--once"), "named twice"),
        (("none", "--once"), "none is no workdir of a run"),
        (("RUN", "--every=0"), "every is 0.0; it must be between 1 and 86400"),
        (("RUN", "--every=nan"), "every is nan"),
        (("RUN", "--once", "--output=RUN/config.json/x.html"), "cannot write"),
    ],
)
def test_refusals(capsys, tmp_path, words, named):
    run = make_run(tmp_path / "run")
    code, out, error = run_cli(capsys, "watch", *(word.replace("RUN", str(run)) for word in words))
    assert code == 2 and out == "" and named in error and error.count("\n") == 1, error
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "something was written"


def test_a_run_that_was_never_there_is_refused_in_python_too(tmp_path):
    with pytest.raises(ConfigError, match="no workdir"):
        watch([tmp_path / "none"], tmp_path / "page.html", once=True)


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_a_page_that_no_longer_reloads(tmp_path, number, code):
    run, page = make_run(tmp_path / "run"), tmp_path / "page.html"
    words = [sys.executable, "-m", "stce_jax", "watch", run, f"--output={page}", "--every=2"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(page.exists, "page", process)
    before = page.stat().st_mtime_ns
    assert check_page(page.read_text()).data["every"] == 2.0
    wait_for(lambda: page.stat().st_mtime_ns > before, "second page", process)
    os.kill(process.pid, number)
    out, error = process.communicate(timeout=60)
    assert process.returncode == code and error == f"stce: {'interrupted' if code == 130 else 'terminated'}\n", error
    assert out == f"{page}: 1 run, written every 2 seconds until Ctrl-C\n"
    assert check_page(page.read_text()).data["every"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "run"], "something half-written is left"
