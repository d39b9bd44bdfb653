"""The table of formats: options of one are refused with another, failures leave nothing, JAX is imported late."""

import argparse
import os

import pytest
from helpers import modules_after, run_cli
from made_runs import TINY_VIT, made_run

from stce_jax.commands import export as command
from stce_jax.convert import formats
from stce_jax.errors import CheckpointError, ConfigError
from stce_jax.training import assemble as runs
from stce_jax.verbs import appearing
from stce_jax.verbs import export as verb
from stce_jax.workdir import weights


@pytest.fixture
def deit(monkeypatch):
    """A run of a tiny DeiT, which every workdir seems to hold."""
    run = made_run("deit_ti", patch_size=8, **TINY_VIT)
    monkeypatch.setattr(runs, "load_run", lambda *_: run)
    return run


def test_every_format_is_a_module_with_write():
    for name in formats.FORMATS:
        module = formats._module(name)
        assert callable(module.write), name
        assert set(getattr(module, "OPTIONS", ())) <= set(formats.OPTION_FLAGS), name


@pytest.mark.slow
def test_the_table_alone_starts_no_jax():
    loaded = modules_after("import stce_jax.convert.formats, stce_jax.commands.export")
    assert not {"jax", "flax", "torch", "timm", "onnx", "huggingface_hub"} & loaded


@pytest.mark.parametrize(
    "words, named",
    [
        (("--format=pickle",), "invalid choice: 'pickle'"),
        (("--format=safetensors", "--platforms=cpu"), "--platforms is an option of --format=jax; leave it out"),
        (("--format=timm", "--batch=2"), "--batch is an option of --format=jax; leave it out with --format=timm"),
        (("--format=timm", "--batch=symbolic"), "--batch is an option of --format=jax"),
        (("--license=mit",), "--license is an option of --format=timm and huggingface; leave it out"),
        (("--format=timm", "--license=my own"), "--license is 'my own'; give the hub's name of it"),
        (("--format=timm", "--include=jax"), "--include is an option of --format=huggingface"),
        (("--format=huggingface", "--include=huggingface"), "it cannot hold itself"),
        (("--format=huggingface", "--include=zip"), "there is no format 'zip'; give one of jax, "),
        (("--format=safetensors", "--push=me/it"), "--push is an option of --format=huggingface"),
        (("--format=huggingface", "--push=it"), "--push is 'it'; give a repository of the hub: OWNER/NAME"),
    ],
)
def test_options_that_cannot_be(capsys, tmp_path, words, named):
    code, _, error = run_cli(capsys, "export", "--workdir=W", f"--output={tmp_path / 'out'}", *words)
    assert code == 2 and named in error, error
    assert "usage" in error or error.count("\n") == 1, error
    assert os.listdir(tmp_path) == [], "something was left"


def test_an_unknown_format_in_python(tmp_path):
    with pytest.raises(ConfigError, match="there is no format 'pickle'; give one of jax, safetensors"):
        verb.export("W", tmp_path / "out", format="pickle")


@pytest.mark.parametrize("name", ["safetensors", "timm"])
def test_weights_that_are_read_back_otherwise_are_not_exported(deit, tmp_path, monkeypatch, name):
    read = weights.read_file

    def flipping(path):
        arrays, ids = read(path)
        first = sorted(arrays)[0]
        return {**arrays, first: -arrays[first]}, ids

    monkeypatch.setattr("stce_jax.convert.files.read_file", flipping)
    with pytest.raises(CheckpointError, match="was read back with another "):
        verb.export("W", tmp_path / "out", format=name)
    assert os.listdir(tmp_path) == [], "something was left"


@pytest.mark.parametrize("name", ["jax", "safetensors", "timm", "torch", "huggingface"])
def test_a_full_disk_is_one_line_and_leaves_nothing(deit, capsys, small_disk, monkeypatch, name):
    monkeypatch.setattr(verb, "_known", lambda *_: {})
    (small_disk / "other").write_bytes(bytes(3 * 2**20 - 8192))
    words = ("export", "--workdir=W", f"--output={small_disk / 'out'}", f"--format={name}")
    code, _, error = run_cli(capsys, *words, *(("--platforms=cpu", "--batch=1") if name == "jax" else ()))
    assert code == 2 and error.startswith(f"stce: cannot write {small_disk / 'out'}"), error
    assert "No space left on device; make room, or give another" in error and error.count("\n") == 1, error
    assert appearing.PREFIX not in error and os.listdir(small_disk) == ["other"], "something was left"


def test_another_normalisation_than_the_runs_is_not_exported(deit, tmp_path, monkeypatch):
    module = formats._module("timm")
    config = module._config

    def wrong(run, *more):
        made = config(run, *more)
        made["pretrained_cfg"]["mean"] = [0.485, 0.456, 0.406]
        return made

    monkeypatch.setattr(module, "_config", wrong)
    with pytest.raises(CheckpointError, match="the exported model differs from the run: logits by up to"):
        verb.export("W", tmp_path / "out", format="timm")
    assert os.listdir(tmp_path) == [], "something was left"


def test_weights_that_were_not_read_back_are_not_said_to_be_equal():
    """As those of an ONNX graph."""
    done = {"step": 7, "dtype": "float32", "bytes": 1, "batch_sizes": [1, 3], "difference": 0.0, "greatest_logit": 1.0}
    words = argparse.Namespace(output="out", format="onnx")
    assert "read back: weights equal to the bit; logits of 1 and 3" in "".join(command._lines(words, done))
    assert "read back: logits of 1 and 3" in "".join(command._lines(words, {**done, "only_logits": True}))


def test_what_the_command_says(deit, capsys, tmp_path):
    code, out, error = run_cli(
        capsys, "export", "--workdir=W", f"--output={tmp_path / 'out'}", "--format=timm", "--license=mit"
    )
    assert code == 0, error
    assert "step 7, float32, timm, " in out and "read back: weights equal to the bit; logits of 1 and 3 images" in out
    assert "licence mit" in out
    assert sorted(os.listdir(tmp_path / "out")) == ["SHA256SUMS", "config.json", "model.safetensors"]
