"""Which compiled programs are kept."""

import os
import types

import jax
import pytest
from jax._src import compilation_cache, compiler, distributed

from stce_jax.platform import compile_cache


def test_the_programs_used_last_are_kept(monkeypatch, tmp_path):
    """By size, once a day; whatever else lies there stays."""
    monkeypatch.setattr(compile_cache, "KEPT", 250)
    monkeypatch.setattr(compile_cache.warnings, "showwarning", compile_cache.warnings.showwarning)
    for name in list(os.environ):
        if "COMPILATION_CACHE" in name or "PERSISTENT_CACHE" in name:
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    directory = tmp_path / "stce_jax" / "jax"
    directory.mkdir(parents=True)
    used = {
        "jit_a-1-cache": (9, 1),
        "jit_b-1-cache": (2, 2),
        "jit_c-1-cache": (3, 8),
        "jit_d-1-cache": (4, 4),
        "x": (0, 0),
    }
    for name, times in used.items():  # read, written
        (directory / name).write_bytes(bytes(100))
        os.utime(directory / name, times)

    def turned_on():
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        compile_cache.turn_on()
        assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(directory)
        return {path.name for path in directory.iterdir()} - {compile_cache.STAMP}

    assert turned_on() == {"jit_a-1-cache", "jit_c-1-cache", "x"}
    (directory / "jit_e-1-cache").write_bytes(bytes(300))
    assert "jit_e-1-cache" in turned_on(), "looked through more than once a day"
    os.utime(directory / compile_cache.STAMP, (1, 1))
    assert turned_on() == {"x"}


@pytest.mark.parametrize(
    "platform, index, writer", [("cpu", 0, "JAX"), ("cpu", 1, "we"), ("gpu", 0, "JAX"), ("gpu", 1, "JAX")]
)
def test_on_cpus_every_process_keeps_what_it_compiles(monkeypatch, platform, index, writer):
    """On GPUs and TPUs the entries of process 0, which JAX lets write alone, are all processes'."""
    wrote = []
    monkeypatch.setattr(compiler, "_cache_write", lambda *_: wrote.append("JAX"))
    monkeypatch.setattr(compilation_cache, "put_executable_and_time", lambda *_: wrote.append("we"))
    monkeypatch.setattr(distributed.global_state, "process_id", index)
    compile_cache.serve_all_processes()
    compiler._cache_write("jit_f-1", 2.0, "jit_f", types.SimpleNamespace(platform=platform), None, [])
    assert wrote == [writer]


def test_without_a_way_to_have_all_write_none_reads(monkeypatch):
    monkeypatch.delattr(compiler, "_cache_write")
    before = jax.config.jax_enable_compilation_cache
    try:
        compile_cache.serve_all_processes()
        assert not jax.config.jax_enable_compilation_cache
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
