"""Hand-written gradients against the plain forms in forward mode, in second derivatives and over mapped axes.

Their reverse mode is tested with each operation.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stce_jax.models.ops import activations, attention, batch_norms, convolution, depthwise, linear, norms

MASK = np.array([[True, True, False, True], [False, True, True, True]])


def attend(form, query, key, value, bias):
    return form(query, key, value, bias=bias, mask=MASK)


def at_stride(form, inputs, kernel, stride):
    return form(inputs, kernel, stride)


def normalize(form, *operands, more=()):
    outputs = form(*operands, jnp.float32, *more)
    return outputs[0] if isinstance(outputs, tuple) else outputs


OPERATIONS = {  # name -> (operation, plain form, shapes of the operands)
    "gelu": (activations.gelu, activations.gelu_plain, [(3, 4)]),
    "quick_gelu": (activations.quick_gelu, activations.quick_gelu_plain, [(3, 4)]),
    "silu_gate": (activations.silu_gate, activations.silu_gate_plain, [(3, 4), (3, 4)]),
    "product": (lambda *own: linear.product(*own, True), linear.product_plain, [(2, 3, 4), (4, 2)]),
    "product behind a GELU": (
        lambda *own: linear.activated_product(*own, True),
        lambda inputs, kernel: linear.product_plain(activations.gelu_plain(inputs), kernel),
        [(2, 3, 4), (4, 2)],
    ),
    "layer_norm": (
        functools.partial(normalize, norms.layer_norm, more=(1e-6,)),
        functools.partial(normalize, norms.layer_norm_plain, more=(1e-6,)),
        [(3, 4), (4,), (4,)],
    ),
    "rms_norm": (
        functools.partial(normalize, norms.rms_norm, more=(1e-6,)),
        functools.partial(normalize, norms.rms_norm_plain, more=(1e-6,)),
        [(3, 4), (4,)],
    ),
    "gelu_batch_norm": (
        functools.partial(normalize, batch_norms.gelu_batch_norm),
        functools.partial(normalize, batch_norms.gelu_batch_norm_plain),
        [(2, 3, 2, 4), (4,), (4,)],
    ),
    **{
        f"batch_norm{'_silu' * silu}": (
            functools.partial(normalize, batch_norms.batch_norm, more=(silu,)),
            functools.partial(normalize, batch_norms.batch_norm_plain, more=(silu,)),
            [(2, 3, 2, 4), (4,), (4,)],
        )
        for silu in (False, True)
    },
    "halving_convolution": (
        convolution.halving_convolution,
        convolution.halving_convolution_plain,
        [(2, 5, 4, 3), (3, 3, 3, 2)],
    ),
    **{
        f"depthwise_convolution, stride {stride}": (
            functools.partial(at_stride, depthwise.depthwise_convolution, stride=stride),
            functools.partial(at_stride, depthwise.depthwise_convolution_plain, stride=stride),
            [(2, 5, 4, 3), (3, 3, 1, 3)],
        )
        for stride in (1, 2)
    },
    "depthwise_residual": (
        depthwise.depthwise_residual,
        depthwise.depthwise_residual_plain,
        [(2, 5, 4, 3), (3, 3, 1, 3), (3,)],
    ),
    "attention": (
        functools.partial(attend, attention.dot_product_attention),
        functools.partial(attend, attention.attention_plain),
        [(2, 3, 2, 4), (2, 4, 2, 4), (2, 4, 2, 4), (1, 2, 1, 4)],
    ),
}


def derivatives(form, operands, tangents):
    """{name: derivative} of a form, as users take them."""
    every = tuple(range(len(operands)))

    def number(*operands):
        return jnp.sin(form(*operands)).sum()

    def along(*operands):
        return jax.jvp(number, operands, tangents)[1]

    def all_of(first, *others):  # what is mapped: the first operand alone
        return jax.vmap(number, in_axes=(0, *(None for _ in others)))(jnp.stack([first, 2 * first]), *others).sum()

    return {
        "jvp": jax.jvp(form, operands, tangents)[1],
        "linearize": jax.linearize(form, *operands)[1](*tangents),
        "jacfwd": jax.jacfwd(number)(*operands),
        "jvp of grad": jax.jvp(jax.grad(number, every), operands, tangents)[1],
        "grad of jvp": jax.grad(along, every)(*operands),
        "jvp of vmap": jax.jvp(all_of, operands, tangents)[1],
        "grad of vmap": jax.grad(all_of, every)(*operands),
        "vmap of grad": jax.vmap(jax.grad(number))(*(jnp.stack([operand, 2 * operand]) for operand in operands)),
        "jvp of checkpoint": jax.jvp(jax.checkpoint(number), operands, tangents)[1],
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_derivative_equals_the_plain_forms(name):
    *forms, shapes = OPERATIONS[name]
    rng = np.random.default_rng(0)
    operands, tangents = (tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes) for _ in range(2))
    found, expected = jax.jit(lambda *both: [derivatives(form, *both) for form in forms])(operands, tangents)
    for kind, value in expected.items():
        chex.assert_trees_all_close(found[kind], value, rtol=2e-3, atol=2e-4, custom_message=f"{kind} of {name}")


def test_reverse_mode_leaves_no_trace_of_forward_mode():
    """What an operation gives by `jax.grad` is its backward pass and nothing else."""
    program = str(jax.make_jaxpr(jax.grad(lambda x: activations.gelu(x).sum()))(jnp.ones(3)))
    assert "own_gradient" not in program and program.count(" erf ") == 2, program
