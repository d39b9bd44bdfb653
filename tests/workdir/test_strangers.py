"""Workdirs as anybody may have left them: each reader answers in one line, with the right exit code."""

import json
import os
import shutil

import pytest
from helpers import TINY, run_cli

from stce_jax.workdir import layout
from stce_jax.workdir.checkpoints import Checkpoints


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of a finished run."""
    return shutil.copytree(tiny_run[0], tmp_path / "run")


def newest(run):
    checkpoints = Checkpoints(run / "checkpoints")
    return checkpoints, checkpoints.find("last")


# --- what lies among the checkpoints and is none


def link(path):
    path.symlink_to("/not/mounted/44")


def circle(path):
    path.symlink_to(path)


def file(path):
    path.write_text("mine")


@pytest.mark.parametrize(
    "name, make",
    [
        ("44", link),
        ("44", circle),
        ("44", file),
        ("44", os.mkfifo),
        ("007", os.mkdir),
        ("٣", os.mkdir),
        ("9" * 200, os.mkdir),
        ("-1", os.mkdir),
        ("44.unsealed", file),
        ("notes.txt", file),
    ],
    ids=lambda value: ascii(value)[:20] if isinstance(value, str) else value.__name__,
)
def test_what_is_no_checkpoint_is_passed_over(run, name, make):
    _, step = newest(run)
    before = Checkpoints(run / "checkpoints").steps()
    make(run / "checkpoints" / name)
    checkpoints, found = newest(run)
    assert (checkpoints.steps(), found) == (before, step)
    assert os.path.lexists(run / "checkpoints" / name), "it is not ours to remove"


@pytest.mark.parametrize("make", [file, circle], ids=["a file", "a link in a circle"])
def test_checkpoints_that_cannot_be_listed(capsys, run, make):
    shutil.rmtree(run / "checkpoints")
    make(run / "checkpoints")
    code, _, error = run_cli(capsys, "predict", os.devnull, f"--workdir={run}")
    assert (code, error.count("\n")) == (4, 1) and "cannot list the checkpoints in" in error, error


def test_a_linked_checkpoint_is_read(run):
    """As of a run whose checkpoints lie on another disk."""
    (run / "checkpoints").rename(run.parent / "elsewhere")
    (run / "checkpoints").symlink_to(run.parent / "elsewhere")
    assert newest(run)[1]


# --- config.json


BYTES = {
    "no UTF-8": b'{"seed": 1}\xff',
    "nested": b"[" * 100_000,
    "nested objects": b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    "objects nested a little": b'{"a":' * 60 + b"1" + b"}" * 60,  # which Python's stack has room for
    "a list": b"[1]",
    "a number": b"1",
    "null": b"null",
    "empty": b"",
    "a large number": b'{"seed": ' + b"9" * 5_000 + b"}",
    "a model that is none": b'{"form": 2, "model": 3}',
    "a part that is none": b'{"form": 2, "model": {"body": [], "embedding": 1, "reduction": {}}}',
    "a form that is none": b'{"form": [2]}',
    "a form that is infinite": b'{"form": 1e999}',
}


@pytest.mark.parametrize("content", BYTES.values(), ids=BYTES)
@pytest.mark.parametrize("verb", ["predict", "compare"])
def test_a_damaged_config_json(capsys, run, content, verb):
    (run / "config.json").write_bytes(content)
    words = ("predict", os.devnull, f"--workdir={run}") if verb == "predict" else ("compare", run)
    code, _, error = run_cli(capsys, *words)
    assert code == 2 and error.count("\n") == 1 and "config.json" in error, error
    assert len(error) < 1000, f"that is no line but a dump of {len(error)} characters"


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, circle], ids=["a directory", "a pipe", "a link in a circle"])
def test_what_is_no_file_in_the_place_of_config_json(capsys, run, make):
    (run / "config.json").unlink()
    make(run / "config.json")
    code, _, error = run_cli(capsys, "compare", run)
    assert code == 2 and error.count("\n") == 1 and "config.json" in error, error


def test_without_config_json_the_newest_checkpoint_decides(capsys, run, data_dir):
    before = layout.read_config(run)
    (run / "config.json").unlink()
    assert layout.is_workdir(run) and layout.read_config(run) == before
    assert "has no config.json; its config is that of checkpoint" in capsys.readouterr().err
    words = ("train", *TINY, f"--workdir={run}", f"--data_dir={data_dir}")
    code, _, error = run_cli(capsys, *words, "--config.seed=5")
    assert code == 2 and "belongs to another config (seed: 0 -> 5)" in error, error
    assert not (run / "config.json").exists()
    code, output, error = run_cli(capsys, *words)
    assert code == 0 and "already finished" in output, error
    assert layout.read_config(run) == before and (run / "config.json").exists()


def test_without_config_json_and_without_a_whole_checkpoint(capsys, run, data_dir):
    (run / "config.json").unlink()
    for sums in run.glob("checkpoints/*/SHA256SUMS"):
        sums.unlink()
    code, _, error = run_cli(capsys, "train", *TINY, f"--workdir={run}", f"--data_dir={data_dir}")
    assert code == 4 and error.count("\n") == 1 and "no checkpoint in" in error, error
    shutil.rmtree(run / "checkpoints")
    code, _, error = run_cli(capsys, "predict", os.devnull, f"--workdir={run}")
    assert code == 2 and "is no workdir of a run" in error, error


# --- meta.json of a checkpoint, with digests to match


def rewrite(run, change):
    """Changes the newest checkpoint's meta.json as who knows the format does."""
    from etils import epath

    from stce_jax.workdir import digests

    directory = run / "checkpoints" / str(newest(run)[1])
    text = change(json.loads((directory / "meta.json").read_text()))
    (directory / "meta.json").write_text(text if isinstance(text, str) else json.dumps(text))
    digests.write_digests(epath.Path(directory))


def setting(key, value):
    """Changes one value, at "a.b.c"."""

    def change(meta):
        *path, last = key.split(".")
        inner = meta
        for name in path:
            inner = inner[name]
        inner[last] = value
        return meta

    return change


META = {
    "a list": lambda meta: [meta],
    "nested": lambda meta: "[" * 100_000,
    "empty": lambda meta: "",
    **{
        f"without {key}": lambda meta, key=key: {name: value for name, value in meta.items() if name != key}
        for key in ("metrics", "config", "class_ids", "class_names", "mean", "std", "epoch")
    },
    **{
        f"{key} {value!r:.20}": setting(key, value)
        for key, value in (
            ("metrics", []),
            ("metrics", {"top1": "high"}),
            ("class_ids", 3),
            ("class_ids", ["one"]),
            ("class_names", [1] * 10),
            ("class_names", []),
            ("mean", [0.5, 0.5]),
            ("mean", [float("nan")] * 3),
            ("std", [0, 1, 1]),
            ("epoch", "two"),
            ("config", None),
            ("config.model", []),
            ("config.image_size", -16),
            ("config.image_size", "16"),
            ("config.model.body.vit.depth", -1),
            ("config.model.body.vit.depth", 10**6),
            ("config.model.body.vit.width", 10**9),
            ("config.image_size", 10**6),
            ("config.loader_threads", 10**6),
            ("config.model.body.vit.width", 0),
            ("config.model.embedding.stce.stem_widths", "wide"),
            ("config.augment", 1),
        )
    },
}


@pytest.mark.parametrize("change", META.values(), ids=META)
def test_a_meta_json_that_no_run_writes(capsys, run, change):
    rewrite(run, change)
    code, output, error = run_cli(capsys, "predict", os.devnull, f"--workdir={run}")
    assert (code, output, error.count("\n")) == (4, "", 1) and "checkpoint" in error, error
    assert len(error) < 1000, f"that is no line but a dump of {len(error)} characters"


@pytest.mark.parametrize(
    "key, value",
    [
        ("guard", {"losses": 1}),
        ("guard", [1]),
        ("salt", -1),
        ("salt", None),
        ("fingerprint", 7),
        ("origin", {"step": 1}),
        ("origin", 3),
    ],
)
def test_training_does_not_resume_from_a_meta_json_that_no_run_writes(capsys, run, data_dir, key, value):
    rewrite(run, setting(key, value))
    code, _, error = run_cli(capsys, "train", *TINY, f"--workdir={run}", f"--data_dir={data_dir}")
    assert (code, error.count("\n")) == (4, 1) and repr(key) in error, error


# --- files of a checkpoint, with digests to match


def test_a_pipe_or_a_link_in_a_checkpoint_is_damage_and_not_waited_for(capsys, run):
    _, step = newest(run)
    directory = run / "checkpoints" / str(step)
    (directory / "meta.json").unlink()
    os.mkfifo(directory / "meta.json")
    code, _, error = run_cli(capsys, "predict", os.devnull, f"--workdir={run}", f"--checkpoint={step}")
    assert code == 4 and "meta.json is no file" in error, error
    (directory / "meta.json").unlink()
    for name in ("one", "two"):
        (directory / name).symlink_to(directory)  # two of them: following every path would never end
    code, _, error = run_cli(capsys, "predict", os.devnull, f"--workdir={run}", f"--checkpoint={step}")
    assert code == 4 and "is no file" in error, error
