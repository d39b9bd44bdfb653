"""Runs and logits that version 0.1.0 made, before models and configs were rearranged: all of it stays usable."""

import functools
import json
import re
import shutil

import jax
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image

from stce_jax import create_model, load_exported, load_run

RUNS = ("stce", "patch", "stce_scan_mean")
LOGITS = [
    f"vit_ti_{embedding}_{pooling}"
    for embedding in ("patch", "conv", "conv1x1", "earlyconv", "stce")
    for pooling in ("class", "mean")
]


@pytest.fixture(scope="module")
def before(test_data):
    folder = test_data / "before"
    if not folder.is_dir():
        pytest.skip("the runs of version 0.1.0 are not in STCE_TEST_DATA")
    return folder


@pytest.fixture(scope="module")
def digit(tmp_path_factory):
    from sklearn.datasets import load_digits

    path = tmp_path_factory.mktemp("images") / "digit.png"
    Image.fromarray((load_digits().images[7] * 15.9).astype(np.uint8)).save(path)
    return path


def copied(before, name, folder):
    return shutil.copytree(before / name, folder / name)


@pytest.mark.parametrize("name", LOGITS)
def test_logits_and_paths_of_variables_are_the_same(before, name):
    with np.load(before / f"logits_{name}.npz") as file:
        saved = {key: file[key] for key in file.files}
    options = json.loads(str(saved.pop("options")))
    images, logits = saved.pop("images"), saved.pop("logits")
    flat = {key.removeprefix("variables/"): value for key, value in saved.items()}
    model = create_model(options.pop("name"), **options)
    shapes = traverse_util.flatten_dict(
        jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False)), sep="/"
    )
    assert {path: leaf.shape for path, leaf in shapes.items()} == {path: leaf.shape for path, leaf in flat.items()}
    variables = traverse_util.unflatten_dict(flat, sep="/")
    found = jax.jit(functools.partial(model.apply, train=False))(variables, images)
    np.testing.assert_allclose(found, logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_evaluates_to_the_same(before, tmp_path, stce_here, data_dir, name):
    run, output = copied(before, name, tmp_path), tmp_path / "evaluation"
    done = stce_here("evaluate", f"--workdir={run}", f"--data_dir={data_dir}", f"--output={output}")
    assert done.returncode == 0, done.stderr
    found = json.loads((output / "evaluation.json").read_text())
    expected = json.loads((before / f"{name}.evaluation" / "evaluation.json").read_text())
    assert found["top1"] == expected["top1"] and found["step"] == expected["step"]
    assert abs(found["loss"] - expected["loss"]) < 1e-6
    with (
        np.load(output / "predictions.npz") as ours,
        np.load(before / f"{name}.evaluation" / "predictions.npz") as theirs,
    ):
        np.testing.assert_allclose(ours["logits"], theirs["logits"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_predicts_and_exports(before, tmp_path, stce_here, digit, name):
    run = copied(before, name, tmp_path)
    done = stce_here("predict", f"--workdir={run}", digit)
    assert done.returncode == 0 and "digit.png" in done.stdout, done.stderr
    done = stce_here("export", f"--workdir={run}", f"--output={tmp_path / 'exported'}")
    assert done.returncode == 0, done.stderr
    loaded = load_run(run)
    exported = load_exported(tmp_path / "exported")
    pixels = np.asarray(Image.open(digit).convert("RGB").resize((16, 16)))[None]
    forward = jax.jit(functools.partial(loaded.model.apply, train=False))
    logits = forward(loaded.variables, loaded.preprocess(pixels[0])[None])
    # The LayerNorm over a patch of one colour magnifies what normalising in another order rounds.
    np.testing.assert_allclose(exported.logits(pixels), logits, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", [name for name in RUNS if name != "patch"])
def test_a_run_goes_on_when_its_config_gets_more_epochs(before, tmp_path, stce_here, data_dir, name):
    """The config file is of that version, too: it sets the flat keys that `config.model` had."""
    run = copied(before, name, tmp_path)
    values = json.loads((run / "config.json").read_text())
    model = {key: tuple(v) if isinstance(v, list) else v for key, v in values["model"].items() if v is not None}
    lines = ["from . import digits", "def get_config():", "    config = digits.get_config('patch').unlock()"]
    lines += ["    config.model.patch_size = None"]
    lines += [f"    config.model.{key} = {value!r}" for key, value in model.items()]
    for section in ("augment", "optimizer"):
        for key, value in values[section].items():
            lines += [f"    config.{section}.{key} = {tuple(value) if isinstance(value, list) else value!r}"]
    for key, value in values.items():
        if not isinstance(value, dict) and value is not None:
            lines += [f"    config.{key} = {value!r}"]
    file = tmp_path / "old.py"
    file.write_text("\n".join([*lines, "    return config.lock()"]))
    words = ("train", f"--config={file}", f"--workdir={run}", f"--data_dir={data_dir}")
    done = stce_here(*words, "--config.epochs=4", "--allow_config_change")
    assert done.returncode == 0, done.stderr
    assert "resuming from step 135" in done.stdout and "another config: epochs: 3.0 -> 4.0" in done.stdout, done.stdout
    assert re.search(r"finished: top-1 \d", done.stdout)
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and 135 in steps and steps[-1] == 180


def test_old_keys_on_the_command_line_still_count(tmp_path, stce_here, data_dir):
    words = ("train", "--config=digits:patch", f"--workdir={tmp_path / 'run'}", f"--data_dir={data_dir}")
    small = {"width": 12, "heads": 3, "depth": 1, "mlp_dim": 24, "patch_size": 8, "pooling": "mean"}
    words += tuple(f"--config.model.{key}={value}" for key, value in small.items())
    done = stce_here(*words, "--config.image_size=16", "--config.epochs=0.1", "--config.warmup_epochs=0")
    assert done.returncode == 2 and "warmup_epochs" in done.stderr
    done = stce_here(*words, "--config.image_size=16", "--config.epochs=0.1", "--config.optimizer.warmup_epochs=0")
    assert done.returncode == 0, done.stderr
    run = load_run(tmp_path / "run")
    assert run.variables["params"]["embedding"]["projection"]["kernel"].shape == (192, 12)
    assert "class_token" not in run.variables["params"] and "blocks_1" not in run.variables["params"]
