"""Batches in parts: where there are any, and the numbers of whole batches."""

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from stce_jax.models.conv_layers import ConvModule, EarlyConvModule
from stce_jax.models.ops import parts


@pytest.fixture
def pretend(monkeypatch):
    """Has this process pretend to have so many devices of a kind."""

    def set_devices(count, backend):
        monkeypatch.setattr(jax, "device_count", lambda: count)
        monkeypatch.setattr(jax, "default_backend", lambda: backend)

    return set_devices


def test_a_single_cpu_device_computes_in_parts(pretend):
    pretend(1, "cpu")
    small, large = (8, 8, 3), (128, 128, 5)
    assert [parts.number_of_parts((batch, *small)) for batch in (1, 4, 6, 8, 64)] == [1, 4, 1, 4, 4]
    assert [parts.number_of_parts((batch, *large)) for batch in (1, 4, 6, 8, 24, 64)] == [1, 4, 1, 8, 8, 16]
    assert [parts.number_of_parts((8, count)) for count in (2**16, 2**16 + 1)] == [4, 8]


@pytest.mark.parametrize(("devices", "backend"), [(2, "cpu"), (1, "gpu"), (1, "tpu")])
def test_others_compute_whole_batches(pretend, devices, backend):
    pretend(devices, backend)
    assert parts.number_of_parts((8, 9, 9, 3)) == 1


def test_programs_for_elsewhere_compute_whole_batches(pretend):
    pretend(1, "cpu")
    with parts.whole_batches():
        assert parts.number_of_parts((8, 9, 9, 3)) == 1
    (batch,) = jax.export.symbolic_shape("b")
    assert parts.number_of_parts((batch, 9, 9, 3)) == 1


def forward_and_backward(module, inputs):
    """((outputs, statistics), gradients of parameters and inputs, number of convolutions) of a module in training."""
    variables = module.init(jax.random.key(0), inputs, train=False)

    def loss(params, inputs):
        outputs, updates = module.apply({**variables, "params": params}, inputs, train=True, mutable=["batch_stats"])
        return jnp.sin(outputs).sum(), (outputs, updates)

    traced = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)).trace(variables["params"], inputs)
    (_, aux), gradients = traced.lower().compile()(variables["params"], inputs)
    return (aux, gradients), str(traced.jaxpr).count("= conv_general_dilated[")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", [ConvModule, EarlyConvModule])
def test_parts_compute_what_the_whole_does(kind, stride, monkeypatch):
    module = kind(features=8, stride=stride)
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(8, 9, 10, 5)), jnp.float32)
    monkeypatch.setattr(parts, "number_of_parts", lambda shape: 1)
    whole, of_whole = forward_and_backward(module, inputs)
    monkeypatch.setattr(parts, "number_of_parts", lambda shape: 4)
    jax.clear_caches()
    in_parts, of_parts = forward_and_backward(module, inputs)
    assert of_parts == 4 * of_whole, f"{of_parts} convolutions in parts, {of_whole} of the whole"
    chex.assert_trees_all_close(in_parts, whole, atol=3e-4, rtol=1e-4)
