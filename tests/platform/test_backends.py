"""A form for each backend: chosen by XLA, or, where the backend is known, before anything else is traced."""

import jax
import jax.numpy as jnp
import pytest

from stce_jax.platform.backends import by_backend, compiled_for

FORMS = {"cpu": lambda x: x + 1, "cuda": lambda x: x + 2, "default": lambda x: x + 3}


def traced(forms, backend=""):
    """(the jaxpr of a choice among these forms, the names of those that were traced for it)."""
    met = []

    def noting(name):
        def form(x):
            met.append(name)
            return FORMS[name](x)

        return form

    def choose(x):
        with compiled_for(backend):
            return by_backend(x, **{name: noting(name) for name in forms})

    return jax.make_jaxpr(choose)(jnp.zeros(())), set(met)


@pytest.mark.parametrize(
    "backend, forms, expected",
    [
        ("cpu", FORMS, {"cpu"}),
        ("tpu", FORMS, {"default"}),
        ("gpu", FORMS, {"cuda", "default"}),  # it may be one of CUDA's or another's
        ("gpu", ("cpu", "default"), {"default"}),
        ("cpu", ("cuda", "default"), {"default"}),
        ("a plugin's", FORMS, {"default"}),
        ("", FORMS, set(FORMS)),
    ],
)
def test_only_forms_that_may_be_needed_are_traced(backend, forms, expected):
    jaxpr, met = traced(forms, backend)
    assert met == expected
    assert ("platform_index" in str(jaxpr)) == (len(expected) > 1), "XLA has nothing to choose, or something"


def test_both_ways_compute_the_same():
    def choose(x):
        return by_backend(x, **FORMS)

    def known(x):
        with compiled_for("cpu"):
            return choose(x)

    for function in (choose, known):  # one after the other: what is traced for one serves no other
        assert jax.jit(function)(jnp.zeros(())) == 1
        assert jax.vmap(jax.grad(function))(jnp.zeros(3)).tolist() == [1, 1, 1]


def test_one_jitted_function_is_traced_for_each_choice():
    choose = jax.jit(lambda x: by_backend(x, default=FORMS["default"], tpu=FORMS["cuda"]))
    assert choose(0.0) == 3
    with compiled_for("tpu"):
        assert choose(0.0) == 2, "what was traced for all backends served for one"
    assert choose(0.0) == 3, "what was traced for one backend served for all"
