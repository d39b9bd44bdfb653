"""The converter of PyTorch's files, as far as it goes without PyTorch; tests/interop has the rest."""

import sys

import pytest

from stce_jax.convert import pth_to_safetensors
from stce_jax.errors import ConfigError


def test_without_pytorch_and_with_another_suffix_it_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match="this needs PyTorch"):
        pth_to_safetensors.convert(tmp_path / "a.pth", tmp_path / "a.safetensors")
    assert pth_to_safetensors.main([str(tmp_path / "a.pth"), str(tmp_path / "a.npz")]) == 2
    error = capsys.readouterr().err
    assert "must end with .safetensors" in error and error.count("\n") == 1
