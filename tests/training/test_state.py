"""The state of step 0: one trace of the model for all who ask, and a program that is compiled while others work."""

import threading
from typing import ClassVar

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn

from stce_jax.processes import peers
from stce_jax.training.mesh import make_mesh
from stce_jax.training.state import abstract_state, abstract_variables, begin_state, init_state

SIZE, OPTIMIZER = 4, optax.adam(1e-3)


class Toy(nn.Module):
    """A linear classifier that counts how often it is traced."""

    classes: int = 3
    traces: ClassVar[list] = []

    @nn.compact
    def __call__(self, images, train):
        self.traces.append(self.classes)
        return nn.Dense(self.classes)(images.reshape(len(images), -1))


def begun(model, make=begin_state, **options):
    given = {"seed": 0, "image_size": SIZE, "with_ema": True, "mesh": make_mesh(1, jax.devices()[:1])} | options
    return make(model, OPTIMIZER, **given)


@pytest.fixture
def compilations(monkeypatch):
    """The threads in which programs were compiled ahead of their first call."""
    threads, compile_program = [], jax.stages.Lowered.compile

    def noting(lowered, *arguments, **options):
        threads.append(threading.current_thread())
        return compile_program(lowered, *arguments, **options)

    monkeypatch.setattr(jax.stages.Lowered, "compile", noting)
    return threads


def test_shapes_and_state_take_one_trace_of_a_model():
    Toy.traces.clear()
    shapes = abstract_variables(Toy(5), SIZE)
    state_shapes = abstract_state(Toy(5), OPTIMIZER, image_size=SIZE, with_ema=True)
    state = begun(Toy(5), init_state)
    assert Toy.traces == [5], "an equal model was traced again"
    of = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)  # noqa: E731
    assert of(state) == of(state_shapes) and of(state.variables) == of(shapes)
    abstract_variables(Toy(6), SIZE)
    abstract_variables(Toy(5), 2 * SIZE)
    assert Toy.traces == [5, 6, 5], "another model or another size is another function"


def test_shapes_belong_to_who_asks_for_them():
    abstract_variables(Toy(), SIZE)["params"].clear()
    assert abstract_variables(Toy(), SIZE)["params"], "somebody changed what all others get"


def test_a_model_whose_option_has_no_hash_has_a_state_as_well():
    class Listed(Toy):
        widths: list = ()

    model = Listed(widths=[1, 2])
    with pytest.raises(TypeError):
        hash(model)
    assert abstract_variables(model, SIZE).keys() == begun(model, init_state).variables.keys() == {"params"}


def test_the_program_compiles_while_its_caller_goes_on(compilations):
    give = begun(Toy())
    state = give()
    assert [thread is threading.main_thread() for thread in compilations] == [False]
    expected = begun(Toy(), init_state)
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_several_processes_compile_when_all_ask_for_the_state(compilations, monkeypatch):
    monkeypatch.setattr(peers, "several", lambda: True)
    give = begun(Toy())
    assert not compilations, "it may meet the others in another order than they do"
    jax.tree.map(np.testing.assert_array_equal, give(), begun(Toy(), init_state))
    assert not compilations


def test_what_fails_meanwhile_is_raised_to_who_asks_for_the_state(monkeypatch):
    def fail(lowered):
        raise RuntimeError("no memory")

    monkeypatch.setattr(jax.stages.Lowered, "compile", fail)
    give = begun(Toy())
    with pytest.raises(RuntimeError, match="no memory"):
        give()
