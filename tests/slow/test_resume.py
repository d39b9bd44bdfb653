"""Runs that are killed, stopped and started again: they end bit for bit where the undisturbed one does."""

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from helpers import TINY, wait_for

from stce_jax.training import assemble as runs
from stce_jax.training.mesh import make_mesh, sharded_shapes
from stce_jax.training.optimization import build_optimizer
from stce_jax.training.state import abstract_state
from stce_jax.workdir import layout
from stce_jax.workdir.checkpoints import Checkpoints
from stce_jax.workdir.claim import Claim
from stce_jax.workdir.config import load_config
from stce_jax.workdir.metric_lines import read_metrics

# The tiny run with the conv stem, which has BatchNorm, too, and compiles in half the time: 90 steps; an evaluation and
# a checkpoint after every ninth. test_train.py stops the super-token embedding.
OTHERS = ("--config=", "eval_every", "embedding")
WORDS = (
    "--config=digits:conv",
    *[word for word in TINY if not any(name in word for name in OTHERS)],
    "--config.eval_every=0.2",
    "--config.model.embedding.conv.stem_widths=8,16",
    "--config.model.embedding.conv.stem_strides=2,2",
)
soon = functools.partial(wait_for, pause=0.0005)  # moments between two files that a run writes


# `stce` with runs that are all long enough for oneDNN.
BY_ONEDNN = """
import sys
from stce_jax.platform import cpu_library
cpu_library.ENOUGH_WORK = 0.0
from stce_jax.cli import main
sys.exit(main())
"""


def start(workdir, data_dir, *words, env=None, program=("-m", "stce_jax")):
    command = [sys.executable, *program, "train", *WORDS, f"--workdir={workdir}", f"--data_dir={data_dir}"]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2"} | (env or {})
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *words], env=environment, **options)


def finish(process, code=0):
    output, errors = process.communicate(timeout=120)
    assert process.returncode == code, f"exit code {process.returncode}, not {code}: {errors}"
    return output, errors


def resumptions(output):
    """The steps that runs say they resume from."""
    return [int(step) for step in re.findall("^start: resuming from step ([0-9]+) of 90$", output, re.MULTILINE)]


def final_state(workdir, *words):
    """Every array of the last checkpoint: parameters, statistics, optimizer, average, step."""
    config = load_config("digits:conv", [*WORDS[1:], *words])
    model = runs.build_model(config, 10)
    _, optimizer = build_optimizer(config, runs.Timetable(1437, 32, 2, 0.2))
    blank = abstract_state(model, optimizer, image_size=16, with_ema=True)
    checkpoints = Checkpoints(layout.checkpoints_in(workdir))
    return checkpoints.restore(checkpoints.find("last"), sharded_shapes(blank, make_mesh(1, jax.devices()[:1])))


def assert_same_run(workdir, undisturbed):
    pairs = zip(jax.tree.leaves_with_path(final_state(workdir)), jax.tree.leaves(final_state(undisturbed)), strict=True)
    for (path, left), right in pairs:
        same = np.asarray(left).tobytes() == np.asarray(right).tobytes()
        assert same, f"{jax.tree_util.keystr(path)} is not what it is in the undisturbed run"
    seen, expected = (
        {(line["step"], line["split"]): line for line in read_metrics(run)} for run in (workdir, undisturbed)
    )
    assert len(seen) == len(read_metrics(workdir)), "a line stands twice in metrics.jsonl"
    for key, line in expected.items():
        if key[1] == "eval":
            assert seen[key] == line, f"another evaluation after step {key[0]}"
    assert not list((workdir / "checkpoints").glob("*.*")), "something unfinished is left"


@pytest.fixture(scope="module")
def undisturbed(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    finish(start(workdir, data_dir))
    assert len([line for line in read_metrics(workdir) if line["split"] == "eval"]) == 10
    return workdir


class Moments:
    """Waits until a run of a workdir is in the middle of something."""

    def __init__(self, workdir, process, rng):
        self.workdir, self.process, self.rng = workdir, process, rng
        self.checkpoints = workdir / "checkpoints"

    def steps(self):
        return (
            [int(name) for name in os.listdir(self.checkpoints) if name.isdecimal()]
            if self.checkpoints.is_dir()
            else []
        )

    def _until(self, condition, what):
        soon(condition, what, self.process)

    def starting(self):
        """Importing, opening the data."""
        time.sleep(self.rng.uniform(0, 1.5))

    def compiling(self):
        before = os.path.getmtime(self.workdir / "lock") if (self.workdir / "lock").exists() else None
        self._until(
            lambda: (self.workdir / "lock").exists() and os.path.getmtime(self.workdir / "lock") != before,
            "compilation",
        )
        time.sleep(self.rng.uniform(0, 0.6))

    def stepping(self):
        """Between two checkpoints; the first of them is new."""
        before = max(self.steps(), default=0)
        self._until(lambda: max(self.steps(), default=0) > before, "new checkpoint")
        time.sleep(self.rng.uniform(0, 0.05))

    def saving(self):
        self._until(
            lambda: self.checkpoints.is_dir() and any("." in name for name in os.listdir(self.checkpoints)), "save"
        )
        time.sleep(self.rng.uniform(0, 0.02))

    def evaluating(self):
        """After the line of training that comes just before."""
        due = {9 * number for number in range(1, 11)}

        def begun():
            seen = {(line["step"], line["split"]) for line in read_metrics(self.workdir)}
            trained = max((step for step, split in seen if split == "train"), default=0)
            return trained in due and (trained, "eval") not in seen

        self._until(begun, "evaluation")


def test_killed_twenty_times_a_run_ends_where_the_undisturbed_one_does(undisturbed, data_dir, tmp_path):
    """By SIGKILL, at random moments of starting, compiling, stepping, saving and evaluating, four each."""
    rng = np.random.default_rng(7)
    moments = ["starting", "compiling", "saving", "evaluating", "stepping"] * 4
    resumed = []
    for moment in moments:
        process = start(tmp_path, data_dir)
        getattr(Moments(tmp_path, process, rng), moment)()
        assert process.poll() is None, (
            f"the run ended before it could be killed while {moment}: {process.communicate()}"
        )
        process.kill()
        output, _ = process.communicate(timeout=60)
        resumed += resumptions(output)
    output, errors = finish(start(tmp_path, data_dir))
    assert resumptions(output), output
    assert "damaged" not in errors, f"a kill looks like damage: {errors}"
    steps = [*resumed, *resumptions(output)]
    assert len(steps) > 5 and steps == sorted(steps), f"it went back: {steps}"
    assert_same_run(tmp_path, undisturbed)


# By SIGTERM between two steps: test_train.py.
def test_stopped_in_evaluations_and_a_save_a_run_ends_where_the_undisturbed_one_does(undisturbed, data_dir, tmp_path):
    """By SIGINT in an evaluation; by SIGTERM, with twenty more signals while it saves; by SIGTERM in the last one."""
    process = start(tmp_path, data_dir)
    Moments(tmp_path, process, np.random.default_rng(0)).evaluating()
    process.send_signal(signal.SIGINT)
    _, errors = finish(process, 75)
    found = re.fullmatch(r"stce: stopped by SIGINT at step (\d+), which is saved; run again to resume\n", errors)
    assert found, errors
    assert (tmp_path / "checkpoints" / found[1]).is_dir(), "it says that it saved, and did not"

    process = start(tmp_path, data_dir)
    Moments(tmp_path, process, np.random.default_rng(0)).stepping()
    process.terminate()
    for number in (signal.SIGTERM, signal.SIGINT) * 10:
        if process.poll() is None:
            process.send_signal(number)
            time.sleep(0.005)
    output, _ = finish(process, 75)
    assert resumptions(output) == [int(found[1])], output

    process = start(tmp_path, data_dir)
    moments = Moments(tmp_path, process, np.random.default_rng(0))
    soon(lambda: any(line["step"] == 90 for line in read_metrics(tmp_path)), "step 90", process)
    process.terminate()
    process.communicate(timeout=60)
    if process.returncode == 75:  # else the evaluation, which takes a moment, had ended
        assert 90 in moments.steps()
    finish(start(tmp_path, data_dir))
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_in_the_first_compilation_ends_the_run_at_once(data_dir, tmp_path, number):
    """Python itself hears of it only when XLA is done, for a large model minutes later."""
    cold = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cold"), "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    process = start(tmp_path / "run", data_dir, "--config.model.body.vit.depth=12", env=cold)
    moments = Moments(tmp_path / "run", process, np.random.default_rng(0))
    soon(moments.checkpoints.is_dir, "checkpoints", process)
    time.sleep(3)
    assert not read_metrics(tmp_path / "run"), "it is compiled already"
    process.send_signal(number)
    sent = time.monotonic()
    _, errors = finish(process, 75)
    assert time.monotonic() - sent < 3, "it waited for the compilation"
    assert errors == f"stce: stopped by {number.name} before its first step; run again to resume\n"


def test_a_signal_while_data_are_prepared(stce_here, tmp_path):
    process = start(tmp_path / "run", tmp_path / "data")
    soon(lambda: list((tmp_path / "data").glob("digits/incomplete*")), "preparation", process)
    process.terminate()
    _, errors = finish(process, 75)
    assert errors == "stce: stopped by SIGTERM before its first step; run again to resume\n"
    assert not (tmp_path / "run").exists()
    words = ("--config=digits", f"--data_dir={tmp_path / 'data'}", f"--output={tmp_path / 'sheet.png'}")
    assert stce_here("show-data", *words).returncode == 0
    assert {path.name for path in (tmp_path / "data" / "digits").iterdir()} == {"1.0.0"}, "leftovers"


def catches(process, number):
    with open(f"/proc/{process.pid}/status") as status:
        [caught] = [line.split()[1] for line in status if line.startswith("SigCgt:")]
    return bool(int(caught, 16) >> (number - 1) & 1)


def test_a_signal_while_jax_is_imported(data_dir, tmp_path):
    process = start(tmp_path, data_dir)
    soon(lambda: catches(process, signal.SIGTERM), "handler", process)  # the first thing that the command does
    process.terminate()
    _, errors = finish(process, 75)
    assert errors == "stce: stopped by SIGTERM before its first step; run again to resume\n"


def test_a_second_job_on_the_same_workdir_is_refused(data_dir, tmp_path):
    with Claim(tmp_path):  # what a training job holds from before its first step to its end
        _, errors = finish(start(tmp_path, data_dir), 2)
    assert f"workdir {tmp_path} is in use by process {os.getpid()} on " in errors and errors.count("\n") == 1, errors


def test_a_damaged_checkpoint_is_set_aside_and_the_run_ends_where_it_would_have(undisturbed, data_dir, tmp_path):
    workdir = shutil.copytree(undisturbed, tmp_path / "copy")
    path = max((workdir / "checkpoints" / "90" / "optimizer").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    output, errors = finish(start(workdir, data_dir))
    assert (
        "checkpoint 90 in " in errors
        and f"{path.name} is damaged; it is called 90.damaged now; resuming from 81" in errors
    )
    assert resumptions(output) == [81]
    shutil.rmtree(workdir / "checkpoints" / "90.damaged")
    assert_same_run(workdir, undisturbed)


def test_with_no_whole_checkpoint_left_it_is_exit_4(undisturbed, data_dir, tmp_path, stce_here):
    workdir = shutil.copytree(undisturbed, tmp_path / "copy")
    for step in (workdir / "checkpoints").iterdir():
        (step / "meta.json").unlink()
    before = (workdir / "metrics.jsonl").read_bytes()
    for _ in range(2):
        done = stce_here("train", *WORDS, f"--workdir={workdir}", f"--data_dir={data_dir}")
        assert done.returncode == 4 and done.stderr.count("\n") == 1, done.stderr
        assert "is whole (" in done.stderr and "meta.json is missing" in done.stderr
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_another_config_is_refused_unless_told(undisturbed, data_dir, tmp_path, stce_here):
    workdir = shutil.copytree(undisturbed, tmp_path / "copy")
    words = ("train", *WORDS, f"--workdir={workdir}", f"--data_dir={data_dir}")
    words += ("--config.epochs=2.1", "--config.optimizer.weight_decay=0.01")
    done = stce_here(*words)
    assert done.returncode == 2, done.stderr
    assert "(epochs: 2.0 -> 2.1; optimizer.weight_decay: " in done.stderr and "--allow_config_change" in done.stderr
    done = stce_here(*words, "--allow_config_change")
    assert "continuing with another config: epochs: 2.0 -> 2.1; optimizer" in done.stdout, done.stderr
    assert "resuming from step 90 of 94" in done.stdout
    assert stce_here(*words).stdout.startswith("already finished at step 94")


def test_a_wider_model_names_the_first_parameter_that_does_not_fit(undisturbed, data_dir, tmp_path, stce_here):
    workdir = shutil.copytree(undisturbed, tmp_path / "copy")
    words = ("train", *WORDS, f"--workdir={workdir}", f"--data_dir={data_dir}", "--config.model.body.vit.mlp_dim=48")
    done = stce_here(*words, "--allow_config_change")
    errors = done.stderr
    assert done.returncode == 4, errors
    assert "params/blocks_0/mlp/in/bias is (32,) in it, the model wants (48,)" in errors and errors.count("\n") == 1
    assert "; give the options it was trained with (model.body.vit.mlp_dim: 32 -> 48), or another --workdir" in errors


def test_a_disk_that_fills_ends_the_run_and_costs_nothing_but_time(undisturbed, data_dir, small_disk):
    process = start(small_disk / "run", data_dir)
    moments = Moments(small_disk / "run", process, np.random.default_rng(0))
    soon(moments.steps, "checkpoint", process)
    with open(small_disk / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(b"x" * 2**12)
    _, errors = process.communicate(timeout=60)
    # Whichever comes first: a checkpoint that does not fit, or a line of metrics.
    said = [line for line in errors.splitlines() if not line.startswith("stce: tensorboard is off ")]
    assert process.returncode in (2, 4) and len(said) == 1 and said[0].startswith("stce: cannot write "), errors
    os.remove(small_disk / "filler")
    output, errors = finish(start(small_disk / "run", data_dir))
    assert resumptions(output) and not errors
    assert_same_run(small_disk / "run", undisturbed)


def test_killed_a_run_by_onednn_ends_where_the_undisturbed_one_does(data_dir, tmp_path):
    kept = tmp_path / "programs"
    options = {
        "program": ("-c", BY_ONEDNN),
        "env": {"JAX_NUM_CPU_DEVICES": "1", "JAX_COMPILATION_CACHE_DIR": str(kept)},
    }
    undisturbed, workdir = tmp_path / "undisturbed", tmp_path / "run"
    output, _ = finish(start(undisturbed, data_dir, **options))
    if "by oneDNN" not in output:
        pytest.skip("this jaxlib has no oneDNN, or is one with which nobody has tried it")
    process = start(workdir, data_dir, **options)
    soon(lambda: (workdir / "checkpoints" / "18").is_dir(), "the second checkpoint")
    process.kill()
    process.communicate()
    output, _ = finish(start(workdir, data_dir, **options))
    assert resumptions(output), "it began anew, so this test shows nothing"
    assert_same_run(workdir, undisturbed)
    assert not list(kept.glob("jit_train_step*")), "programs with oneDNN cannot be kept"
