"""What a backward pass on a single CPU device keeps: by XLA's account of compiled gradients."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from stce_jax.models.batch_norms import GeluBatchNorm
from stce_jax.models.conv_layers import convolution
from stce_jax.models.layers import MLP, LayerNorm

ROWS, WIDTH, HIDDEN, BLOCKS = 512, 64, 256, 8
IMAGES, SIDE, CHANNELS, MODULES = 4, 32, 16, 6


class Blocks(nn.Module):
    """LayerNorm and MLP with residual sums, as in a transformer's block."""

    @nn.compact
    def __call__(self, values):
        for block in range(BLOCKS):
            normed = LayerNorm(name=f"norm_{block}")(values)
            values += MLP(HIDDEN, name=f"mlp_{block}")(normed, False)
        return values


class Stack(nn.Module):
    """Convolution, GELU and BatchNorm, as in an embedding."""

    @nn.compact
    def __call__(self, values):
        for module in range(MODULES):
            values = convolution(CHANNELS, 3, 1, jnp.float32, name=f"convolution_{module}")(values)
            values = GeluBatchNorm(jnp.float32, None, name=f"norm_{module}")(values, train=True)
        return values


def kept(module, shape, devices, monkeypatch):
    """Bytes that the gradient of all parameters holds at once, in a process that has so many devices."""
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    jax.clear_caches()
    inputs = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), inputs)

    def loss(params, inputs):
        given = {**variables_of(variables), "params": params}
        return jnp.sin(module.apply(given, inputs, mutable=["batch_stats"])[0]).sum()

    compiled = jax.jit(jax.grad(loss)).lower(variables["params"], inputs).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def variables_of(shapes):
    return jax.tree.map(lambda own: jnp.zeros(own.shape, own.dtype), {**shapes, "params": {}})


@pytest.fixture(autouse=True)
def _forget_what_was_traced():
    yield
    jax.clear_caches()


def test_a_block_keeps_no_gelu_and_no_gradient_waits_for_the_end(monkeypatch):
    measure = functools.partial(kept, Blocks(), (1, ROWS, WIDTH), monkeypatch=monkeypatch)
    several, one = measure(8), measure(1)
    # The residual sum, the norm's outputs, what the GELU reads; and of the block at work its cotangents.
    numbers = BLOCKS * ROWS * (2 * WIDTH + HIDDEN) + 4 * ROWS * HIDDEN
    assert one < 1.15 * 4 * numbers, f"{one / 4 / numbers:.2f} of what the backward pass needs"
    assert one < 0.8 * several, f"{one:,} bytes, with several devices {several:,}"


def test_a_module_of_a_stack_keeps_two_maps(monkeypatch):
    measure = functools.partial(kept, Stack(), (IMAGES, SIDE, SIDE, CHANNELS), monkeypatch=monkeypatch)
    several, one = measure(8), measure(1)
    # What the GELU reads, and the norm's outputs; and of the module at work three.
    numbers = (2 * MODULES + 3) * IMAGES * SIDE * SIDE * CHANNELS
    assert one < 1.15 * 4 * numbers, f"{one / 4 / numbers:.2f} of what the backward pass needs"
    assert one < 0.9 * several, f"{one:,} bytes, with several devices {several:,}"
