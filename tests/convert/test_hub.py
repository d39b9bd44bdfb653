"""--push, against a stand-in for huggingface_hub: what is uploaded, what is said when it fails, and never the token."""

import os
import sys
import types

import pytest
from helpers import run_cli
from made_runs import TINY_VIT, made_run

from stce_jax.convert import hub
from stce_jax.errors import ConfigError
from stce_jax.training import assemble as runs
from stce_jax.verbs import export as verb

TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz"


@pytest.fixture
def library(monkeypatch):
    """A stand-in that keeps what it was called with; `fail` is raised where it is set."""
    module, module_calls = types.ModuleType("huggingface_hub"), []
    module.calls, module.fail = module_calls, None

    def create_repo(repo_id, **options):
        module_calls.append(("create", repo_id, options))
        return f"https://hub.example/{repo_id}"

    def upload_folder(*, repo_id, folder_path, **options):
        if module.fail:
            raise module.fail
        module_calls.append(("upload", repo_id, sorted(os.listdir(folder_path)), options))

    module.create_repo, module.upload_folder = create_repo, upload_folder
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


@pytest.fixture
def words(monkeypatch, tmp_path):
    run = made_run("deit_ti", patch_size=8, **TINY_VIT)
    monkeypatch.setattr(runs, "load_run", lambda *_: run)
    monkeypatch.setattr(verb, "_known", lambda *_: {})
    return ("export", "--workdir=W", f"--output={tmp_path / 'out'}", "--format=huggingface", "--push=me/model-1")


def test_a_whole_folder_is_uploaded_to_a_private_repository(library, words, capsys):
    code, out, error = run_cli(capsys, *words)
    assert code == 0 and "uploaded to https://hub.example/me/model-1" in out, error
    create, upload = library.calls
    assert create == ("create", "me/model-1", {"repo_type": "model", "private": True, "exist_ok": True})
    assert upload[:3] == ("upload", "me/model-1", ["README.md", "SHA256SUMS", "model.json", "model.safetensors"])
    assert not {"token"} & (create[2].keys() | upload[3].keys()), "the library finds the token itself"


def test_an_upload_that_fails_keeps_the_folder_and_the_token(library, words, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "another-secret")
    library.fail = OSError(f"401: {TOKEN} with Bearer abc.def and another-secret\nmore {TOKEN}")
    code, out, error = run_cli(capsys, *words)
    assert code == 2 and error.count("\n") == 1, error
    assert "cannot upload to me/model-1: 401: *** with *** and ***; " in error and "hf upload me/model-1 " in error
    for secret in (TOKEN, "another-secret", "abc.def"):
        assert secret not in out + error
    assert (tmp_path / "out" / "README.md").exists()


def test_without_the_library_nothing_is_exported(words, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    code, _, error = run_cli(capsys, *words)
    assert code == 2 and "--push needs huggingface_hub: pip install huggingface_hub" in error
    assert error.count("\n") == 1 and os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["", "me", "me/", "/x", "a/b/c", "me/x y", "me/..", "-me/x", "me/x--y", "me/x\n", "../x"]
)
def test_what_is_no_repository(library, name):
    with pytest.raises(ConfigError, match="give a repository of the hub"):
        hub.check(name)
    hub.check("me/x.y_z-1")
