"""Where oneDNN may compute, and that JAX keeps no programs meanwhile."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from stce_jax.platform import cpu_library


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """A directory in which JAX, with one CPU device, keeps all that it compiles."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    compilation_cache.reset_cache()
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


def compiled(factor):
    jax.jit(lambda x: factor * x + 1).lower(jnp.ones(factor)).compile()


def test_with_enough_work_nothing_is_kept_until_it_is_done(kept):
    compiled(3)
    count = len(list(kept.iterdir()))
    assert count, "JAX keeps nothing, so this test shows nothing"
    assert not cpu_library.onednn_computes(), "programs with oneDNN cannot be kept"
    with cpu_library.chosen_for(cpu_library.ENOUGH_WORK) as chosen:
        if not chosen:
            pytest.skip("this jaxlib has no oneDNN, or is one with which nobody has tried it")
        assert cpu_library.onednn_computes()
        compiled(4)
        assert len(list(kept.iterdir())) == count, "a program was kept"
    assert not cpu_library.onednn_computes()
    compiled(5)
    assert len(list(kept.iterdir())) > count, "JAX keeps nothing any more"


def test_with_little_work_it_is_xla_with_and_without_kept_programs(kept):
    for directory in (str(kept), None):
        jax.config.update("jax_compilation_cache_dir", directory)
        with cpu_library.chosen_for(cpu_library.ENOUGH_WORK / 2) as chosen:
            assert not chosen and not cpu_library.onednn_computes()
            assert jax.config.jax_compilation_cache_dir == directory


@pytest.mark.parametrize("elsewhere", ["two devices", "no oneDNN"])
def test_where_it_cannot_compute_programs_are_kept(elsewhere, kept, monkeypatch):
    if elsewhere == "two devices":
        monkeypatch.setattr(jax, "device_count", lambda: 2)
    else:
        monkeypatch.setattr(cpu_library, "_is_there", lambda: False)
    with cpu_library.chosen_for(cpu_library.ENOUGH_WORK) as chosen:
        assert not chosen
        compiled(6)
        assert list(kept.iterdir()), "the program was not kept"


@pytest.mark.parametrize("work", [0.0, cpu_library.ENOUGH_WORK])
def test_the_choice_ends_with_an_error_too(work, kept):
    with pytest.raises(ZeroDivisionError), cpu_library.chosen_for(work):
        raise ZeroDivisionError
    assert jax.config.jax_compilation_cache_dir == str(kept)
    jax.config.update("jax_compilation_cache_dir", None)
    assert cpu_library.onednn_computes() == cpu_library._is_there()
