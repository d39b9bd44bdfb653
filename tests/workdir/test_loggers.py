"""Loggers: what they are given, what happens where they fail, and how a service's run goes on.

The real services are met by tests/loggers, in an environment of their own.
"""

import csv
import json
import math
import re
import sys
import threading
import types

import pytest
from helpers import SMALLEST_VIT, run_cli

from stce_jax.errors import ConfigError
from stce_jax.platform import life
from stce_jax.training.options import check_saved
from stce_jax.workdir import config as configuration
from stce_jax.workdir import loggers
from stce_jax.workdir.loggers import LoggedRun, background
from stce_jax.workdir.loggers.kept import Kept
from stce_jax.workdir.metric_lines import read_metrics
from stce_jax.workdir.metrics import MetricsLog

VALUES = {"loss": 1.5, "top1": 0.25, "top5": 0.75}


def write(log, *steps, scale=1.0):
    """A line of training of each step, and one of evaluation of every second."""
    for step in steps:
        log.write(step=step, epoch=step / 4, split="train", **VALUES | {"loss": scale / step}, learning_rate=0.1)
        if step % 2 == 0:
            log.write(step=step, epoch=step / 4, split="eval", **VALUES)


def table(workdir):
    with (workdir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


class Service:
    """A stand-in for a service: its runs outlive the process.

    Attributes:
      runs: {id: [(split, step, loss)]}.
      config: of the run that was opened last.
      failing: the method that raises, or "open"; hanging: the one that does not return.
    """

    def __init__(self):
        self.runs, self.config, self.closed = {}, None, []
        self.failing = self.hanging = ""
        self.seconds = 0.0
        self.end = threading.Event()

    def open_log(self, run):
        self._do("open")
        self.id, self.is_new = run.id, run.id not in self.runs
        self.config = dict(run.config)
        self.runs.setdefault(self.id, [])
        return self

    def write(self, line):
        self._do("write")
        self.runs[self.id].append((line["split"], line["step"], line.get("loss")))

    def close(self, summary):
        self._do("close")
        self.closed.append(summary)

    def _do(self, what):
        if what == self.hanging:
            self.end.wait(60)
        if what == self.failing:
            raise RuntimeError("the quota\nis used up")


@pytest.fixture
def service(monkeypatch):
    """A service whose logger is named "standin"."""
    made = Service()
    monkeypatch.setitem(loggers.LOGGERS, "standin", "json")
    module = types.SimpleNamespace(open_log=made.open_log)
    monkeypatch.setitem(sys.modules, "stce_jax.workdir.loggers.standin", module)
    monkeypatch.setattr(life, "_may_hang", threading.Event())
    yield made
    made.end.set()


def line(step, split):
    return {"step": step, "epoch": step / 4, "split": split, **VALUES}


def run_of(workdir, lines=()):
    """A run that goes on behind these lines."""
    last = {split: max((one["step"] for one in lines), default=0) for split in ("train", "eval")}
    place = {"notes": workdir / "loggers", "directory": workdir, "remote": False}
    return LoggedRun(name="run", config={}, lines=lines, last=last, **place)


# --- options


def test_the_command_line_makes_one_entry_of_several_names():
    assert loggers.logger_names(("csv,wandb",)) == loggers.logger_names(("csv", "wandb")) == ["csv", "wandb"]
    assert loggers.logger_names(("",)) == loggers.logger_names(()) == []


@pytest.mark.parametrize("words", ["csv,wnadb", "csv,csv"])
def test_names_that_are_none_are_one_line(capsys, tmp_path, words):
    code, _, error = run_cli(capsys, "train", "--config=digits", f"--workdir={tmp_path}/a", f"--config.loggers={words}")
    assert code == 2 and error.count("\n") == 1
    assert error.endswith("it must be some of tensorboard, csv, wandb, trackio, mlflow, each once\n")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", [name for name, package in loggers.LOGGERS.items() if package])
def test_a_missing_package_is_one_line_before_anything_is_made(monkeypatch, capsys, tmp_path, name):
    monkeypatch.setattr(loggers, "_is_installed", lambda package: False)
    words = (f"--workdir={tmp_path}/a", f"--data_dir={tmp_path}/data", f"--config.loggers=csv,{name}")
    code, _, error = run_cli(capsys, "train", "--config=digits", *words)
    advice = f'pip install "stce_jax[{name}]", or leave it out'
    assert (code, error) == (2, f"stce: config.loggers has '{name}', which is not installed: {advice}\n")
    assert not list(tmp_path.iterdir())


def test_a_directory_of_that_name_is_no_package(monkeypatch, tmp_path):
    """wandb makes one where it is run."""
    (tmp_path / "some_service").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(loggers.LOGGERS, "some", "some_service")
    with pytest.raises(ConfigError, match="which is not installed"):
        loggers.check_installed(("some",))


def test_a_run_resumes_with_other_loggers():
    own, other = (
        configuration.load_config("digits"),
        configuration.load_config("digits", ["--config.loggers=csv,wandb"]),
    )
    assert not configuration.differences(own, other) and "loggers" not in configuration.of_result(own)
    check_saved(other)  # wherever it was trained, what it logged to need not be installed here


# --- csv


def test_the_table_has_the_lines_of_the_run(tmp_path):
    with MetricsLog(tmp_path, ("csv",), after_step=0) as log:
        write(log, 1, 2)
        log.write(step=3, epoch=0.75, split="train", **VALUES | {"loss": math.nan}, images_per_second=5.0)
    rows = table(tmp_path)
    assert [{name: cell for name, cell in row.items() if cell} for row in rows] == [
        {name: str(value) for name, value in line.items() if value is not None} for line in read_metrics(tmp_path)
    ]
    assert list(rows[0]) == ["step", "epoch", "split", "loss", "top1", "top5", "learning_rate", "images_per_second"]
    assert not list(tmp_path.glob("events*")), "TensorBoard is not named"


def test_a_table_goes_on_and_goes_back_as_the_run_does(tmp_path):
    with MetricsLog(tmp_path, ("csv",), after_step=0) as log:
        write(log, 1, 2, 3)
    with MetricsLog(tmp_path, ("csv",), after_step=2, evaluated=False) as log:
        write(log, 3, 4, 5)
        log.rewind(3)
        write(log, 4)
    expected = [(str(line["step"]), line["split"]) for line in read_metrics(tmp_path)]
    assert [(row["step"], row["split"]) for row in table(tmp_path)] == expected
    assert [step for step, split in expected if split == "train"] == ["1", "2", "3", "4"]


# --- failing softly


@pytest.mark.parametrize("failing", ["open", "write", "close"])
def test_a_service_that_fails_is_one_warning_and_no_more(service, tmp_path, capsys, failing):
    service.failing = failing
    with MetricsLog(tmp_path, ("standin", "csv"), after_step=0) as log:
        write(log, 1, 2, 3)
    assert len(read_metrics(tmp_path)) == len(table(tmp_path)) == 4
    said = capsys.readouterr().err
    assert said == "stce: standin is off until the run is resumed: the quota; training goes on\n"


def test_a_file_that_cannot_be_written_is_one_warning_and_no_more(tmp_path, capsys):
    (tmp_path / "metrics.csv").mkdir()
    with MetricsLog(tmp_path, ("csv",), after_step=0) as log:
        write(log, 1, 2)
    assert len(read_metrics(tmp_path)) == 3
    assert capsys.readouterr().err.startswith("stce: csv is off until the run is resumed: ")


@pytest.mark.parametrize("hanging", ["open", "write", "close"])
def test_a_service_that_hangs_is_left_behind(service, monkeypatch, tmp_path, capsys, hanging):
    monkeypatch.setattr(loggers, "PATIENCE", 0.1)
    service.hanging = hanging
    with MetricsLog(tmp_path, ("standin",), after_step=0) as log:
        write(log, 1, 2)
    assert len(read_metrics(tmp_path)) == 3
    assert capsys.readouterr().err.startswith("stce: standin does not end and is left behind")
    assert not life.can_exit(), "Python would wait for what the service has left"


def test_lines_for_a_service_that_takes_none_do_not_fill_the_memory(service, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(background, "MOST", 3)
    service.hanging = "open"
    with MetricsLog(tmp_path, ("standin",), after_step=0) as log:
        write(log, *range(1, 9))
    assert "stce: standin has not taken 3 lines and is left behind" in capsys.readouterr().err


# --- a service's run goes on


def lines(workdir):
    return [(line["split"], line["step"], line["loss"]) for line in read_metrics(workdir)]


def test_a_stopped_run_goes_on_in_the_same_run_of_the_service(service, tmp_path):
    with MetricsLog(tmp_path, ("standin",), {"seed": 1}, after_step=0) as log:
        write(log, 1, 2, 3)
    with MetricsLog(tmp_path, ("standin",), {"seed": 1}, after_step=2) as log:
        write(log, 3, 4)
        log.finish({"top1": 0.5})
    assert [*service.runs.values()] == [lines(tmp_path)], "a line is lost, or stands twice"
    assert service.config == {"seed": 1} and service.closed == [None, {"top1": 0.5}]


@pytest.mark.parametrize(("seconds", "noted"), [(0.0, [3, 2]), (1000.0, [0, 0])])
def test_after_a_kill_a_service_gets_what_it_may_lack(service, tmp_path, seconds, noted):
    """One that keeps lines in memory for some seconds may lack those."""
    service.seconds = seconds
    killed = [line(1, "train"), line(2, "train"), line(2, "eval"), line(3, "train")]
    log = Kept("standin", service.open_log, run_of(tmp_path))
    for one in killed:
        log.write(one)
    note = json.loads((tmp_path / "loggers" / "standin.json").read_text())
    assert [note["train"], note["eval"]] == noted
    service.runs[service.id].clear()
    log = Kept("standin", service.open_log, run_of(tmp_path, killed[:3]))
    log.write(killed[3])
    log.write(line(4, "train"))
    lacking = [one for one in [*killed, line(4, "train")] if one["step"] > noted[one["split"] == "eval"]]
    assert [*service.runs.values()] == [[(one["split"], one["step"], one["loss"]) for one in lacking]]


def test_another_config_sends_the_later_steps_again(service, tmp_path):
    with MetricsLog(tmp_path, ("standin",), {"epochs": 3}, after_step=0) as log:
        write(log, 1, 2, 3)
    with MetricsLog(tmp_path, ("standin",), {"epochs": 4}, after_step=2) as log:
        write(log, 3, scale=7.0)
    assert len(service.runs) == 1 and service.runs[service.id][-1] == ("train", 3, 7.0 / 3)


def test_a_run_that_goes_back_sends_the_later_steps_again(service, tmp_path):
    with MetricsLog(tmp_path, ("standin",), after_step=0) as log:
        write(log, 1, 2, 3)
        log.rewind(1)
        write(log, 2, scale=7.0)
    assert [row for row in service.runs[service.id] if row[1] == 2] == [
        *(("train", 2, 0.5), ("eval", 2, 1.5)),
        *(("train", 2, 3.5), ("eval", 2, 1.5)),
    ]


def test_a_logger_that_is_named_later_gets_all_lines(service, tmp_path):
    with MetricsLog(tmp_path, (), after_step=0) as log:
        write(log, 1, 2)
    with MetricsLog(tmp_path, ("standin",), after_step=2) as log:
        write(log, 3)
    assert [*service.runs.values()] == [lines(tmp_path)]


def test_a_service_that_has_no_such_run_gets_all_lines(service, tmp_path):
    """As another server, or project, does."""
    with MetricsLog(tmp_path, ("standin",), after_step=0) as log:
        write(log, 1, 2)
    before = [*service.runs]
    service.runs.clear()
    with MetricsLog(tmp_path, ("standin",), after_step=2) as log:
        write(log, 3)
    assert service.runs == {name: lines(tmp_path) for name in before}


def test_a_process_that_is_killed_while_a_service_opens_leaves_no_run_behind(service, tmp_path):
    service.failing = "open"
    with MetricsLog(tmp_path, ("standin",), after_step=0, evaluated=False):
        pass
    noted = json.loads((tmp_path / "loggers" / "standin.json").read_text())["id"]
    service.failing = ""
    with MetricsLog(tmp_path, ("standin",), after_step=0, evaluated=False):
        pass
    assert [*service.runs] == [noted]


@pytest.mark.parametrize(
    "note", ["", "[]", '{"id": "../run-0", "train": 9, "eval": 9}', '{"id": "0123456789abcdef", "train": "9"}']
)
def test_a_note_that_can_be_none_begins_a_new_run(service, tmp_path, note):
    (tmp_path / "loggers").mkdir()
    (tmp_path / "loggers" / "standin.json").write_text(note)
    with MetricsLog(tmp_path, ("standin",), after_step=0) as log:
        write(log, 1)
    (name,) = service.runs
    assert re.fullmatch("[0-9a-f]{16}", name) and service.runs[name] == lines(tmp_path)
    assert json.loads((tmp_path / "loggers" / "standin.json").read_text())["id"] == name


# --- the command


@pytest.mark.slow
@pytest.mark.usefixtures("no_picture")
def test_the_command_trains_whatever_its_loggers_do(service, stce_here, data_dir, tmp_path):
    service.failing = "close"
    words = ("--config=digits:patch", *SMALLEST_VIT, "--config.image_size=16", "--config.epochs=0.2")
    words += ("--config.model.body.vit.depth=1", "--config.log_every=4", "--config.loggers=csv,standin")
    done = stce_here("train", *words, f"--workdir={tmp_path / 'run'}", f"--data_dir={data_dir}")
    assert done.returncode == 0 and "finished: top-1 " in done.stdout, done.stderr
    assert done.stderr == "stce: standin is off until the run is resumed: the quota; training goes on\n"
    assert f"workdir: {tmp_path / 'run'}: metrics.jsonl, csv, standin\n" in done.stdout
    assert [*service.runs.values()] == [lines(tmp_path / "run")] and len(table(tmp_path / "run")) == len(
        lines(tmp_path / "run")
    )
    assert service.config["optimizer.name"] == "adamw" and not {"loggers", "data_dir"} & set(service.config)
    assert not [key for key in service.config if key.startswith("model.embedding.stce")], "what the run does not read"
