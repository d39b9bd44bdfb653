"""Which compiled programs are kept."""

import os

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
