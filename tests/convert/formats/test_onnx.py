"""The format onnx, as far as it needs no jax2onnx; tests/interop converts."""

import os
import sys

import jax
import jax.numpy as jnp
import pytest
from made_runs import TINY_VIT, made_run

from stce_jax.convert.formats import onnx
from stce_jax.errors import ConfigError
from stce_jax.training import assemble as runs
from stce_jax.verbs import export as verb


@pytest.mark.parametrize("name", onnx.PACKAGES)
def test_a_package_that_is_missing_is_named_with_what_installs_it(tmp_path, monkeypatch, name):
    for other in onnx.PACKAGES:
        monkeypatch.setitem(sys.modules, other, None if other == name else sys)
    with pytest.raises(ConfigError, match=rf"--format=onnx needs {name}, .* pip install --no-deps jax2onnx") as refused:
        verb.export("W", tmp_path / "out", format="onnx")
    assert "\n" not in str(refused.value) and os.listdir(tmp_path) == []


def test_default_branches_are_taken_within_and_no_longer():
    def ours(x):
        return jax.lax.platform_dependent(x, cpu=lambda x: x + 1, default=lambda x: x + 2)

    inside = jax.jit(lambda x: ours(x))
    before = jax.lax.platform_dependent
    with pytest.raises(RuntimeError, match="broken"), onnx._default_branches():
        assert inside(jnp.zeros(())) == 2
        assert jax.lax.platform_dependent(jnp.zeros(()), cpu=lambda x: x + 1, cuda=lambda x: x + 3) == 1
        raise RuntimeError("broken")
    assert jax.lax.platform_dependent is before
    assert inside(jnp.zeros(())) == 1, "what was traced within is still used"


class _Converter:
    """A stand-in for jax2onnx."""

    __version__ = "0.1"

    def to_onnx(self, *_, **__):
        raise NotImplementedError("no plugin for primitive 'fft'\nand more")


def test_an_operation_that_is_not_converted_is_one_line(tmp_path, monkeypatch):
    run = made_run("deit_ti", patch_size=8, **TINY_VIT)
    monkeypatch.setattr(runs, "load_run", lambda *_: run)
    for name in onnx.PACKAGES:
        monkeypatch.setitem(sys.modules, name, _Converter() if name == "jax2onnx" else sys)
    named = r"jax2onnx 0\.1 cannot convert this model: NotImplementedError: no plugin .*'fft'; give --format=jax"
    with pytest.raises(ConfigError, match=named) as refused:
        verb.export("W", tmp_path / "out", format="onnx")
    assert "\n" not in str(refused.value) and os.listdir(tmp_path) == []


def test_a_model_beyond_what_a_file_holds(monkeypatch):
    monkeypatch.setattr(onnx, "LARGEST", 1000)
    run = made_run("deit_ti", patch_size=8, **TINY_VIT)
    with pytest.raises(ConfigError, match="an ONNX file at most 2 GiB; give "):
        onnx._convert(run, run.variables)
