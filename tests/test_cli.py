"""Wrong input: one line that names the cause, the right exit code, nothing written."""

import re
import shutil

import numpy as np
import pytest
from helpers import run_cli
from PIL import Image

from stce_jax import cli
from stce_jax.data import catalog
from stce_jax.errors import DataError
from stce_jax.models.factory import list_models


@pytest.fixture
def folder(tmp_path):
    """A class folder dataset of 16 training and 4 validation images, two classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for name in ("cat", "dog"):
            directory = tmp_path / "images" / split / name
            directory.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)).save(directory / f"{index}.png")
    return tmp_path / "images"


def refuse_folder(capsys, folder, *words):
    workdir = folder.parent / "run"
    code, _, error = run_cli(
        capsys,
        "train",
        "--config=small_folder",
        "--config.batch_size=8",
        f"--data_dir={folder}",
        f"--workdir={workdir}",
        *words,
    )
    return code, error, workdir


@pytest.mark.parametrize(
    "words, code, named",
    [
        ((), 2, "required: VERB"),
        (("trian",), 2, "invalid choice: 'trian'"),
        (("train",), 2, "required: --config, --workdir"),
        (("train", "--config=digits"), 2, "required: --workdir"),
        (("train", "--config=nothing", "--workdir=W"), 2, "there is no config 'nothing'"),
        (("train", "--config=digits", "--workdir=W", "--config.sed=1"), 2, "did you mean 'seed'?"),
        (("train", "--config=digits", "--workdir=W", "--config.seed=x"), 2, "--config.seed=x"),
        (("train", "--config=digits", "--workdir=W", "--wrkdir=V"), 2, "--wrkdir"),
        (("train", "--config=digits", "--workdir=W", "--config.batch_size=31"), 2, "among 2 devices; 32 can"),
        (("train", "--config=digits", "--workdir=W", "--config.fsdp_devices=3"), 2, "does not divide the 2 devices"),
        (("train", "--config=digits:patch", "--workdir=W", "--config.image_size=30"), 2, "would work"),
        (("train", "--config=digits", "--workdir=W", "--config.model.name=vit"), 2, "there is no model 'vit'"),
        (("train", "--config=digits", "--workdir=W", "--config.model.patch_size=4"), 2, "no option 'patch_size'"),
        (
            ("train", "--config=digits", "--workdir=W", "--config.model.body.vit.heads=3"),
            2,
            "cannot be divided among 3 heads",
        ),
        (("train", "--config=digits", "--workdir=W", "--config.epochs=0.001"), 2, "less than one batch"),
        (("train", "--config=digits", "--workdir=/dev/null/run"), 2, "cannot write to workdir /dev/null/run"),
        (("train", "--config=digits", "--workdir=/proc/run"), 2, "cannot write to workdir /proc/run"),
        (("train", "--config=small_folder", "--workdir=W"), 2, "needs --data_dir=DIR"),
        (("train", "--config=small_folder", "--workdir=W", "--data_dir=/no/where"), 3, "has no folder 'train'"),
        (("train", "--config=digits", "--workdir=W", "--data_dir=/dev/null/x"), 3, "cannot prepare the digits"),
        (("evaluate", "--workdir=/no/where"), 2, "is no workdir of a run"),
        (("evaluate", "--workdir=W", "--chekpoint=best"), 2, "--chekpoint"),
        (("models", "vit_x_*"), 2, "no model is called 'vit_x_*'"),
        (("models", "vit_s_patch", "--image_size=100"), 2, "96 or 112 would work"),
        (("models", "--image_size=big"), 2, "--image_size"),
    ],
)
def test_refusals(capsys, tmp_path, data_dir, monkeypatch, words, code, named):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(data_dir))
    found, out, error = run_cli(capsys, *words)
    assert found == code, error
    assert named in error
    assert re.fullmatch(r"stce: .*\n", error), f"not one line: {error!r}"
    assert out == "" and not (tmp_path / "W").exists(), "something was written"


def test_a_batch_larger_than_the_dataset_is_no_error_while_the_run_has_a_step(capsys, folder):
    code, error, _ = refuse_folder(capsys, folder, "--config.epochs=0.1")
    assert code == 2 and "less than one batch" in error


def test_an_empty_class(capsys, folder):
    shutil.rmtree(folder / "train" / "dog")
    (folder / "train" / "dog").mkdir()
    code, error, workdir = refuse_folder(capsys, folder)
    assert code == 3 and f"{folder / 'train' / 'dog'} holds no image" in error and not workdir.exists()


def test_train_and_val_with_different_classes(capsys, folder):
    (folder / "val" / "dog").rename(folder / "val" / "wolf")
    code, error, workdir = refuse_folder(capsys, folder)
    assert code == 3 and "different classes: 'dog' is only in train" in error and not workdir.exists()


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("damage", ["text", "cut"])
def test_a_corrupt_image_is_named(capsys, folder, split, damage):
    path = folder / split / "cat" / "1.png"
    path.write_bytes(b"no image" if damage == "text" else path.read_bytes()[:200])
    tiny = (
        "--config.model.name=vit_ti_patch",
        "--config.model.body.vit.width=16",
        "--config.model.body.vit.depth=1",
        "--config.model.body.vit.mlp_dim=16",
        "--config.epochs=2",
    )
    code, error, _ = refuse_folder(capsys, folder, *tiny)
    assert code == 3, error
    assert f"cannot decode {path}" in error and error.count("\n") == 1


def test_evaluating_on_other_classes_is_refused(folder):
    dataset = catalog.open_folder(folder)
    catalog.check_class_names(dataset, ["cat", "dog"])
    for names, odd in ((["cat", "wolf"], "'dog' differs"), (["dog", "cat"], "their order")):
        with pytest.raises(DataError, match=odd):
            catalog.check_class_names(dataset, names)


def test_a_checkpoint_that_is_not_there(capsys, tiny_run):
    workdir, _ = tiny_run
    code, _, error = run_cli(capsys, "evaluate", f"--workdir={workdir}", "--checkpoint=17")
    assert code == 4 and "there is no checkpoint '17'" in error


def test_a_workdir_without_checkpoints(capsys, tiny_run, tmp_path):
    shutil.copy(tiny_run[0] / "config.json", tmp_path)
    code, _, error = run_cli(capsys, "evaluate", f"--workdir={tmp_path}")
    assert code == 4 and "there is no checkpoint in" in error
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"], "evaluate wrote something"


def test_debug_shows_the_traceback(capsys):
    code, _, error = run_cli(capsys, "evaluate", "--workdir=/no/where", "--debug")
    assert code == 2 and "Traceback" in error and error.splitlines()[-1].startswith("stce: ")


def test_models_without_a_pattern_are_listed_and_not_counted(capsys):
    code, out, _ = run_cli(capsys, "models")
    assert code == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert rows["swin"][:4] == ["swin_t", "swin_s", "swin_b", "_patch"] and "_stce" in rows["swin"]
    assert rows["vit"][:4] == ["vit_ti_patch", "vit_s_patch", "vit_b_patch", "_conv"] and "_linear_patch" not in out
    told = set()
    for body, words in rows.items():
        names = [word for word in words if word in list_models()]
        endings = [word for word in words if word[0] == "_"]
        own = "_patch" if body == "vit" else ""
        told |= {*names, *(name.removesuffix(own) + ending for name in names for ending in endings)}
    assert told == set(list_models())


def test_models_prints_counts(capsys):
    code, out, _ = run_cli(capsys, "models", "vit_s_*")
    assert code == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert rows["vit_s_stce"][:2] == ["17,997,508", "132,192"]
    assert rows["vit_s_patch"][:2] == ["18,162,916", "297,600"]


@pytest.mark.parametrize("verb", [(), ("train",), ("evaluate",), ("models",)])
def test_help_shows_examples_and_exit_codes(capsys, verb):
    code, out, _ = run_cli(capsys, *verb, "--help")
    assert code == 0 and "exit codes" in out
    if verb:
        assert f"stce {verb[0]} " in out and "examples" in out


def test_importing_the_module_that_python_runs_starts_no_command():
    import stce_jax.__main__

    assert stce_jax.__main__.main is cli.main
