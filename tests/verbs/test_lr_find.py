"""`stce lr-find`: the run's own training at growing rates, what is said and written, and what is refused."""

import json

import numpy as np
import pytest
from helpers import SMALLEST_VIT, triple
from PIL import Image

from stce_jax.errors import ConfigError
from stce_jax.recipe.optimizers import AVERAGED, OPTIMIZERS
from stce_jax.verbs import lr_find
from stce_jax.verbs.train import train
from stce_jax.workdir.config import load_config
from stce_jax.workdir.metric_lines import read_metrics

SMALLEST = (*SMALLEST_VIT, "--config.image_size=16", "--config.model.body.vit.depth=1", "--config.seed=3")
RANGE = {"lowest": 1e-5, "highest": 100.0, "steps": 120}


def config_of(data_dir, *words):
    return load_config("digits:patch", [*SMALLEST, f"--config.data_dir={data_dir}", *words])


@pytest.fixture(scope="module")
def found(stce_here, data_dir, tmp_path_factory):
    """(the command's output, its directory) of a test that goes on until the loss diverges."""
    output = tmp_path_factory.mktemp("test") / "lr"
    words = ("lr-find", "--config=digits:patch", *SMALLEST, f"--data_dir={data_dir}", f"--output={output}")
    done = stce_here(*words, "--steps=120", "--min=1e-5", "--max=100")
    assert done.returncode == 0, done.stderr
    return done.stdout, output


@pytest.mark.slow
def test_it_is_said_and_written_and_drawn(found):
    text, output = found
    assert sorted(path.name for path in output.iterdir()) == ["lr_find.json", "lr_find.png"]
    with Image.open(output / "lr_find.png") as picture:
        assert min(picture.size) > 300
    result = json.loads((output / "lr_find.json").read_text())
    steps = len(result["losses"])
    assert 60 < steps < 120 and "the smoothed loss is 4 times its lowest at the learning rate" in result["stopped"]
    np.testing.assert_allclose(result["learning_rates"], np.geomspace(1e-5, 100, 120)[:steps])
    assert result["suggestion"] == float(f"{result['lowest'] / 10:.1e}") and 1e-4 < result["suggestion"] < 1
    assert result["words"] == f"--config.optimizer.learning_rate={result['suggestion']:g}"
    lines = text.splitlines()
    assert lines[0].startswith("step 12/120  learning rate 4.4") and lines[-2] == result["words"]
    assert lines[-1] == f"{output}: lr_find.json, lr_find.png" and f"stopped: {result['stopped']}" in lines


@pytest.mark.slow
@pytest.mark.usefixtures("no_picture")
def test_the_losses_are_the_runs_own_and_the_same_every_time(found, data_dir, tmp_path):
    losses = json.loads((found[1] / "lr_find.json").read_text())["losses"]
    again = lr_find.lr_find(config_of(data_dir), **RANGE)
    assert again["losses"] == losses, "the same seed gives other losses"
    train(config_of(data_dir, "--config.epochs=0.022", "--config.log_every=1"), tmp_path / "run")
    first = read_metrics(tmp_path / "run")[0]
    assert first["step"] == 1 and first["loss"] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adamw"])
def test_every_optimizer_of_the_table_is_tested(name, found, data_dir):
    """Each follows the rates: it has the first loss of any optimizer, and none survives the last rates."""
    words = [f"--config.optimizer.name={name}"]
    if name in AVERAGED:
        words += ["--config.optimizer.schedule=constant", "--config.optimizer.ema_decay=0"]
    result = lr_find.lr_find(config_of(data_dir, *words), lowest=1e-3, highest=1e3, steps=40)
    assert result["optimizer"] == name and 5 < len(result["losses"]) < 40 and result["stopped"]
    assert result["losses"][0] == pytest.approx(json.loads((found[1] / "lr_find.json").read_text())["losses"][0])


def test_what_it_would_overwrite_and_what_grows_nowhere_is_refused(stce_here, tiny_run, data_dir, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    words = ("lr-find", "--config=digits:patch", *SMALLEST, f"--data_dir={data_dir}")
    cases = [
        ((f"--output={tiny_run[0]}",), "is the workdir of a run, which a range test leaves alone; give another"),
        ((f"--output={tmp_path}/full",), "is there already; give another --output"),
        (
            (f"--output={tmp_path}/new", "--min=1", "--max=0.1"),
            "the rates grow from 1 to 0.1; the second must be above",
        ),
        ((f"--output={tmp_path}/new", "--steps=9"), "steps is 9; it must be a whole number between 10 and 1000"),
        ((), "--output"),
    ]
    for options, named in cases:
        done = stce_here(*words, *options)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and named in done.stderr, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_it_is_one_processs(monkeypatch, stce_here, data_dir, tmp_path):
    for name, value in triple().items():
        monkeypatch.setenv(name, value)
    done = stce_here("lr-find", "--config=digits", f"--data_dir={data_dir}", f"--output={tmp_path}/out")
    assert done.returncode == 2 and "a range test is one process's; start it once" in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


def test_losses_that_are_never_finite_are_refused(monkeypatch, data_dir, tmp_path):
    monkeypatch.setattr(lr_find, "_train", lambda *_: ([], "the loss is not finite"))
    with pytest.raises(ConfigError, match="the loss is not finite at the learning rate 1e-06; give a lower one"):
        lr_find.lr_find(config_of(data_dir), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "losses, said", [([2.0] * 40, "no suggestion: the loss does not fall between"), (None, "note:")]
)
def test_what_is_said_where_nothing_is_suggested_or_the_range_is_too_short(
    losses, said, monkeypatch, stce_here, tmp_path
):
    losses = losses or np.linspace(3, 1, 40).tolist()
    monkeypatch.setattr(lr_find, "_train", lambda *_: (losses, ""))
    done = stce_here("lr-find", "--config=digits", "--steps=40", f"--output={tmp_path}/out")
    assert done.returncode == 0 and said in done.stdout, done.stderr
