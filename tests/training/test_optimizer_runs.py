"""Whole runs with other optimizers, frozen parts and layer rates: stopped, resumed, evaluated, changed, refused."""

import re
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers import SMALLEST_VIT

from stce_jax.errors import CheckpointError
from stce_jax.training import assemble as runs
from stce_jax.verbs.evaluate import evaluate
from stce_jax.verbs.train import train
from stce_jax.workdir import layout
from stce_jax.workdir.checkpoints import Checkpoints
from stce_jax.workdir.config import load_config

pytestmark = pytest.mark.usefixtures("no_picture")
STOP = 5
# A run of 22 steps.
SMALLEST = (
    *SMALLEST_VIT,
    "--config.epochs=0.5",
    "--config.image_size=8",
    "--config.log_every=4",
    "--config.model.body.vit.depth=2",
    "--config.augment.repeats=1",
)
OWN = {
    "muon": (
        *("name=muon", "sam_rho=0.05", "layer_decay=0.7", "freeze=position_embedding,blocks_0/mlp"),
        *("schedule=wsd", "ema_share=0.1", "clip_norm=1"),
    ),
    "schedule_free_adamw": ("name=schedule_free_adamw", "schedule=constant", "beta1=0.8"),
}


def words_of(*options):
    return [f"--config.optimizer.{option}" for option in options]


def config_of(data_dir, *options):
    return load_config("digits:patch", [*SMALLEST, f"--config.data_dir={data_dir}", *words_of(*options)])


def saved(workdir):
    """{path: bits} of all arrays of a run's last checkpoint, its optimizer's included."""
    directory = layout.checkpoints_in(workdir)
    step = Checkpoints(directory).find("last")
    found = {}
    for item in ("variables", "optimizer", "ema"):
        if (directory / str(step) / item).exists():
            tree = ocp.StandardCheckpointer().restore(directory / str(step) / item)
            leaves = jax.tree.leaves_with_path(tree)
            found |= {f"{item}{jax.tree_util.keystr(path)}": np.asarray(leaf).tobytes() for path, leaf in leaves}
    return found


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    """{name: (workdir, last evaluation)} of runs that nobody disturbed; tests only read them."""
    folder = tmp_path_factory.mktemp("finished")
    return {name: (folder / name, train(config_of(data_dir, *options), folder / name)) for name, options in OWN.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_bits(name, finished, seen, data_dir, tmp_path):
    with seen.stopped_at(STOP):
        train(config_of(data_dir, *OWN[name]), tmp_path)
    train(config_of(data_dir, *OWN[name]), tmp_path)
    whole = saved(finished[name][0])
    assert len(whole) > 50 and saved(tmp_path) == whole


@pytest.mark.slow
def test_frozen_parts_have_no_state_in_the_checkpoint(finished):
    names = [name for name in saved(finished["muon"][0]) if name.startswith("optimizer")]
    assert not [name for name in names if "position_embedding" in name or ("blocks_0" in name and "mlp'" in name)]
    assert [name for name in names if "blocks_1" in name and "'mlp'" in name]


@pytest.mark.slow
def test_schedule_free_runs_are_evaluated_at_the_average(finished):
    """What training logs, `stce evaluate` and every reader of a checkpoint see is x, and not y, where gradients are."""
    workdir, last = finished["schedule_free_adamw"]
    assert evaluate(workdir)["loss"] == pytest.approx(last["loss"], rel=1e-5)
    run = runs.load_run(workdir)
    bits = saved(workdir)
    for path, leaf in jax.tree.leaves_with_path(run.variables["params"]):
        key = jax.tree_util.keystr(path)
        assert bits[f"variables['params']{key}"] == np.asarray(leaf).tobytes()
        assert bits[f"optimizer['state']['z']{key}"] != np.asarray(leaf).tobytes()
    with pytest.raises(CheckpointError, match="keeps no moving average"):
        runs.load_run(workdir, ema=True)


@pytest.mark.slow
def test_parts_without_a_state_may_change_and_others_are_refused(stce_here, finished, data_dir, tmp_path):
    run = shutil.copytree(finished["muon"][0], tmp_path / "run")
    words = ["train", "--config=digits:patch", f"--workdir={run}", f"--config.data_dir={data_dir}", *SMALLEST]
    words.append("--allow_config_change")
    own = {option.partition("=")[0]: option for option in OWN["muon"]}
    for option in ("name=adamw", "freeze=embedding"):
        changed = own | {option.partition("=")[0]: option}
        done = stce_here(*words, "--config.epochs=0.6", *words_of(*changed.values()))
        assert done.returncode == 4 and done.stderr.count("\n") == 1, done.stderr
        assert "holds the state of another optimizer" in done.stderr and option.split("=")[0] in done.stderr
    stateless = words_of(
        *OWN["muon"], "clip_norm=0", "sam_rho=0", "layer_decay=1", "schedule=linear", "weight_decay=0.1"
    )
    done = stce_here(*words, "--config.epochs=0.6", *stateless, *words_of("ema_share=0", "muon_momentum=0.9"))
    assert done.returncode == 0 and "finished" in done.stdout, done.stderr


@pytest.mark.slow
def test_fine_tuning_with_a_frozen_body_changes_the_head_alone(finished, stce_here, data_dir, tmp_path):
    """Begun with another run's weights; schedule-free, so that the optimizer's own weights must begin there, too."""
    source = finished["muon"][0]
    options = words_of(*OWN["schedule_free_adamw"], "freeze=embedding,position_embedding,blocks,class_token,norm")
    words = ("train", "--config=digits:patch", f"--workdir={tmp_path}", f"--init_from={source}", *SMALLEST)
    done = stce_here(*words, f"--config.data_dir={data_dir}", *options)
    assert done.returncode == 0 and re.search("trains 90 of [0-9,]+ parameters, frozen: embedding,", done.stdout)
    before, after = runs.load_run(source).variables["params"], runs.load_run(tmp_path).variables["params"]
    for path, leaf in jax.tree.leaves_with_path(before):
        other = after
        for key in path:
            other = other[key.key]
        same = np.asarray(leaf).tobytes() == np.asarray(other).tobytes()
        assert same == (path[0].key != "head"), jax.tree_util.keystr(path)
    distance = np.abs(np.asarray(after["head"]["kernel"]) - np.asarray(before["head"]["kernel"])).max()
    assert distance < 0.2, "the average has not begun at the weights"


REFUSED = [
    (("name=adamm",), "config.optimizer.name is 'adamm'; it must be one of adamw, muon, lion, schedule_free_adamw"),
    (("name=schedule_free_adamw",), "give --config.optimizer.schedule=constant --config.optimizer.ema_decay=0"),
    (("name=schedule_free_adamw", "schedule=constant", "ema_share=0.1"), "--config.optimizer.ema_share=0"),
    (("ema_decay=0.9", "ema_share=0.1"), "there is one average; give one of them, and 0 for the other"),
    (("ema_share=0.5",), "config.optimizer.ema_share is 0.5; it must be 0, or between 0.001 and 0.28"),
    (("schedule=step",), "config.optimizer.schedule is 'step'; it must be one of cosine, linear, wsd, constant"),
    (("decay_share=0",), "config.optimizer.decay_share is 0.0; it must be above 0 and at most 1"),
    (("layer_decay=0",), "config.optimizer.layer_decay is 0.0; it must be between 0.001 and 1"),
    (("sam_rho=-1",), "config.optimizer.sam_rho is -1.0; it must be 0, or between 1e-06 and 100"),
    (("freeze=stem",), "config.optimizer.freeze names 'stem', and the model has no such part; it has blocks,"),
    (("freeze=*",), "which leaves nothing to train; leave the head out"),
    (("freeze=blocks#",), "it must be a tuple of at most 100 names of parts"),
]


@pytest.mark.parametrize("options, message", REFUSED, ids=str)
def test_options_that_cannot_work_are_refused_in_one_line(stce_here, data_dir, tmp_path, options, message):
    done = stce_here(
        *("train", "--config=digits:patch", f"--workdir={tmp_path / 'run'}", *SMALLEST),
        *(f"--config.data_dir={data_dir}", *words_of(*options)),
    )
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "run").exists()
