"""Loggers with the real packages and no network: a run that is stopped, one that is killed, one that nobody answers.

In an environment of their own: `bash launch/loggers.sh`.
"""

import json
import os
import sqlite3
import struct
import subprocess
import sys
import time

import pytest
from helpers import SMALLEST_VIT, wait_for

from stce_jax.workdir.loggers import LoggedRun
from stce_jax.workdir.metric_lines import read_metrics

for package in ("wandb", "trackio", "mlflow"):
    pytest.importorskip(package)

pytestmark = pytest.mark.slow  # all start processes
WORDS = ("train", "--config=digits:patch", *SMALLEST_VIT, "--config.image_size=16", "--config.model.body.vit.depth=1")
WORDS += ("--config.log_every=5", "--config.eval_every=1", "--config.epochs=40")
LOGGERS = "csv,wandb,trackio,mlflow"
OWN = ("WANDB_", "MLFLOW_", "TRACKIO_")  # what the variables of services begin with


def start(workdir, data_dir, *words, loggers=LOGGERS, **variables):
    """`stce train` in a process of its own; Trackio's directory is beside the workdir."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OWN)}
    environment |= {"JAX_NUM_CPU_DEVICES": "1", "TRACKIO_DIR": str(workdir.parent / "trackio"), **variables}
    words = (*WORDS, *words, f"--config.loggers={loggers}", f"--workdir={workdir}", f"--data_dir={data_dir}")
    command = [sys.executable, "-m", "stce_jax", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process, code=0):
    output, errors = process.communicate(timeout=200)
    assert process.returncode == code, f"exit code {process.returncode}, not {code}: {errors}"
    return output, errors


def wait_for_step(workdir, process, step):
    wait_for(lambda: any(line["step"] >= step for line in read_metrics(workdir)), f"step {step}", process)


@pytest.fixture(scope="module")
def stopped(data_dir, tmp_path_factory):
    """(workdir, lines on standard error) of a run that SIGTERM stops after some epochs, and that is then resumed."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    process = start(workdir, data_dir)
    wait_for_step(workdir, process, 100)
    process.terminate()
    _, first = finish(process, 75)
    _, second = finish(start(workdir, data_dir))
    return workdir, [*first.splitlines(), *second.splitlines()]


@pytest.fixture(scope="module")
def killed(data_dir, tmp_path_factory):
    """The workdir of a run that SIGKILL ends behind a checkpoint, twice, and that is then resumed."""
    workdir = tmp_path_factory.mktemp("killed") / "run"
    for step in (300, 700):
        process = start(workdir, data_dir)
        wait_for_step(workdir, process, step)
        process.kill()
        process.communicate(timeout=60)
    finish(start(workdir, data_dir))
    return workdir


def mlflow_runs(workdir):
    """[(parameters, [(split, step, loss)], final values)] of each run."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{workdir}/loggers/mlflow.db")
    found = []
    for run in client.search_runs([client.get_experiment_by_name("stce").experiment_id]):
        losses = [
            (split, metric.step, metric.value)
            for split in ("train", "eval")
            for metric in client.get_metric_history(run.info.run_id, f"{split}/loss")
        ]
        final = {name: value for name, value in run.data.metrics.items() if name.startswith("final/")}
        found.append((run.data.params, losses, final))
        assert run.info.status == "FINISHED" and run.info.run_name == workdir.name
    return found


def trackio_runs(workdir):
    database = sqlite3.connect(workdir.parent / "trackio" / "stce.db")
    runs = {}
    for run, step, values in database.execute("SELECT run_id, step, metrics FROM metrics ORDER BY id"):
        runs.setdefault(run, []).append((step, json.loads(values)))
    configs = dict(database.execute("SELECT run_id, config FROM configs"))
    return [(json.loads(configs[run]), losses_of(rows), final_of(rows)) for run, rows in runs.items()]


def wandb_runs(workdir):
    """From the files of all processes of a run, in order, which are LevelDB's logs of Protocol Buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    runs = {}
    for path in sorted((workdir / "loggers" / "wandb").glob("offline-run-*/run-*.wandb")):
        config, rows, final = runs.setdefault(path.stem, ({}, [], {}))
        data, place, message = path.read_bytes(), 7, b""
        while place + 7 <= len(data):
            left = 2**15 - place % 2**15
            _, length, kind = struct.unpack("<IHB", data[place : place + 7])
            if left < 7 or not kind:  # the end of a block is empty
                place += left
                continue
            message += data[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):  # whole, or its last part
                record, message = Record.FromString(message), b""
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
                items = [(item.key or "/".join(item.nested_key), item.value_json) for item in record.history.item]
                if items:
                    values = {name: json.loads(value) for name, value in items}
                    rows.append((values["step"], values))
                final |= {i.key: json.loads(i.value_json) for i in record.summary.update if i.key[:6] == "final/"}
    return [(config, losses_of(rows), final) for config, rows, final in runs.values()]


def losses_of(rows):
    return [
        (split, step, row[f"{split}/loss"])
        for step, row in rows
        for split in ("train", "eval")
        if f"{split}/loss" in row
    ]


def final_of(rows):
    return next((row for _, row in reversed(rows) if "final/top1" in row), {})


SERVICES = {"mlflow": mlflow_runs, "trackio": trackio_runs, "wandb": wandb_runs}


def logged(workdir):
    return [(line["split"], line["step"], line["loss"]) for line in read_metrics(workdir)]


@pytest.mark.parametrize("service", SERVICES)
def test_a_stopped_run_goes_on_in_the_same_run_with_each_line_once(stopped, service):
    workdir, _ = stopped
    [(config, losses, final)] = SERVICES[service](workdir)
    assert sorted(losses) == sorted(logged(workdir)), "lines are lost, repeated, or have other numbers"
    assert float(config["optimizer.learning_rate"]) == 0.003 and str(config["image_size"]) == "16"
    assert final["final/top1"] == read_metrics(workdir)[-1]["top1"]


def test_nothing_is_said_beside_the_run(stopped):
    _, errors = stopped
    assert len(errors) == 1 and errors[0].startswith("stce: stopped by SIGTERM at step "), errors


@pytest.mark.parametrize("service", SERVICES)
def test_a_killed_run_goes_on_in_the_same_run_and_lacks_no_line(killed, service):
    """What a service had from the last seconds before a kill it may have twice, with the same numbers."""
    [(_, losses, _)] = SERVICES[service](killed)
    assert set(losses) == set(logged(killed))
    repeated = len(losses) - len(set(losses))
    print(f"{service}: {repeated} of {len(losses)} lines twice")
    assert repeated <= (0 if service == "mlflow" else len(losses) // 2)


def test_the_table_is_that_of_an_undisturbed_run(killed, stopped):
    tables = [(workdir / "metrics.csv").read_text().splitlines() for workdir in (killed, stopped[0])]
    kept = ("step", "epoch", "split", "loss", "top1")
    rows = []
    for head, *lines in tables:
        places = [head.split(",").index(name) for name in kept]
        rows.append([[line.split(",")[place] for place in places] for line in lines])
    assert len(rows[0]) == len(logged(killed))
    assert [row for row in rows[0] if row[2] == "eval"] == [row for row in rows[1] if row[2] == "eval"]


def test_mlflow_begins_a_new_run_in_another_store(monkeypatch, tmp_path):
    from stce_jax.workdir.loggers.mlflow import open_log

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    place = {"notes": tmp_path, "directory": tmp_path, "remote": False}
    run = LoggedRun(name="run", config={"seed": 0}, lines=(), last={"train": 0, "eval": 0}, id="0" * 16, **place)
    assert open_log(run).is_new and not open_log(run).is_new


def test_servers_that_do_not_answer_end_nothing(data_dir, tmp_path):
    nobody = "http://127.0.0.1:9"
    variables = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": nobody, "MLFLOW_TRACKING_URI": nobody}
    began = time.monotonic()
    output, errors = finish(
        start(tmp_path / "run", data_dir, "--config.epochs=2", loggers="wandb,mlflow,csv", **variables)
    )
    assert "finished: top-1 " in output and read_metrics(tmp_path / "run")[-1]["step"] == 90
    assert time.monotonic() - began < 90
    for name in ("wandb", "mlflow"):
        said = [line for line in errors.splitlines() if line.startswith(f"stce: {name} ")]
        assert len(said) == 1, errors
