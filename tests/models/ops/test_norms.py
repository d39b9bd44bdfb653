"""LayerNorm, and BatchNorm with its activations, against their plain forms, with their gradients."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stce_jax.models.ops import batch_norms, norms, precision

SHAPE = (3, 5, 4, 6)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def passes(form, inputs, scale, bias, cotangent, dtype):
    """(outputs, gradients); where a form returns statistics too, their cotangents are zeros."""

    def outputs_of(*operands):
        outputs = form(*operands, dtype)
        return outputs[0] if isinstance(outputs, tuple) else outputs

    outputs, pull_back = jax.vjp(outputs_of, inputs, scale, bias)
    return outputs, pull_back(cotangent.astype(outputs.dtype))


def _with_epsilon(form, *operands):
    return form(*operands, 1e-6)


def _with_silu(form, *operands, silu):
    return form(*operands, silu)


FORMS = {
    "layer_norm": [functools.partial(_with_epsilon, form) for form in (norms.layer_norm, norms.layer_norm_plain)],
    "gelu_batch_norm": (batch_norms.gelu_batch_norm, batch_norms.gelu_batch_norm_plain),
    **{
        f"batch_norm{'_silu' * silu}": [
            functools.partial(_with_silu, form, silu=silu)
            for form in (batch_norms.batch_norm, batch_norms.batch_norm_plain)
        ]
        for silu in (False, True)
    },
}
BATCH_NORMS = [name for name in FORMS if "batch_norm" in name]


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_equals_its_plain_form_with_its_gradients(name, dtype):
    inputs, cotangent = jnp.asarray(draw(2, *SHAPE), dtype)
    scale, bias = draw(2, SHAPE[-1], seed=1)
    ours, plain = (passes(form, inputs, scale, bias, cotangent, dtype) for form in FORMS[name])
    chex.assert_trees_all_equal_dtypes(ours, plain)
    assert ours[0].dtype == ours[1][0].dtype == dtype and ours[1][1].dtype == jnp.float32
    # A digit of bfloat16 is 0.8%; sums over it are float32 in both forms.
    tolerance = {jnp.float32: 2e-5, jnp.bfloat16: 1e-2}[dtype]
    chex.assert_trees_all_close(ours, plain, rtol=tolerance, atol=tolerance, custom_message=name)


@pytest.mark.parametrize("name", BATCH_NORMS)
def test_statistics_equal_the_plain_forms(name):
    inputs = draw(*SHAPE) + 5
    scale, bias = np.ones(SHAPE[-1], np.float32), np.zeros(SHAPE[-1], np.float32)
    ours, plain = (form(inputs, scale, bias, jnp.float32)[1:] for form in FORMS[name])
    chex.assert_trees_all_close(ours, plain, rtol=1e-5)


def test_layer_norm_of_bfloat16_computes_in_float32():
    rows = jnp.asarray(draw(3, 5, 16), jnp.bfloat16)
    scale, bias, cotangent = draw(3, 16, seed=1)

    def gradients(inputs, dtype):
        return passes(FORMS["layer_norm"][0], inputs, scale, bias, jnp.zeros_like(inputs) + cotangent, dtype)

    cotangent = jnp.asarray(cotangent, jnp.bfloat16)
    actual, exact = gradients(rows, jnp.bfloat16), gradients(rows.astype(jnp.float32), jnp.float32)
    exact = jax.tree.map(lambda ours, theirs: theirs.astype(ours.dtype), actual, exact)
    chex.assert_trees_all_equal(*jax.tree.map(lambda x: x.astype(jnp.float32), (actual, exact)))


@pytest.mark.parametrize("name", BATCH_NORMS)
def test_the_statistics_are_constants_of_the_gradient(name):
    inputs = np.random.default_rng(4).normal(size=SHAPE).astype(np.float32)
    scale, bias = np.ones(SHAPE[-1], np.float32), np.zeros(SHAPE[-1], np.float32)

    def statistic(inputs):
        _, mean, variance = FORMS[name][0](inputs, scale, bias, jnp.float32)
        return (mean + variance).sum()

    assert not np.any(jax.grad(statistic)(jnp.asarray(inputs)))


@pytest.mark.parametrize(
    "forward",
    [
        functools.partial(batch_norms._gelu_batch_norm_forward, dtype=jnp.float32),
        functools.partial(batch_norms._batch_norm_forward, dtype=jnp.float32, silu=True),
    ],
)
def test_the_backward_pass_keeps_the_inputs_alone(forward):
    inputs = jnp.zeros((8, 32, 32, 16))
    _, saved = jax.eval_shape(forward, inputs, jnp.ones(16), jnp.zeros(16))
    kept = [leaf for leaf in jax.tree.leaves(saved) if leaf.size > 16]
    assert len(kept) == 1, f"{len(kept)} arrays of the inputs' size are kept"


@pytest.mark.parametrize(("platform", "recomputes"), [("cpu", False), ("cuda", True), ("tpu", True)])
def test_the_backward_pass_recomputes_the_gelu_but_on_several_cpus(platform, recomputes):
    def loss(inputs):
        return batch_norms.gelu_batch_norm(inputs, jnp.ones(16), jnp.zeros(16), jnp.float32)[0].sum()

    traced = jax.jit(jax.grad(loss)).trace(jnp.zeros((8, 32, 32, 16)))
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("optimization_barrier" in program) == recomputes


@pytest.mark.parametrize("mean", [0.0, 10.0, 100.0])
@pytest.mark.parametrize("name", BATCH_NORMS)
def test_the_gradient_of_batch_norm_is_as_exact_as_the_plain_forms(name, mean):
    """In float32, with means of up to a hundred deviations, which both take out of sums."""
    rng = np.random.default_rng(5)
    inputs, cotangent = rng.normal(size=(2, 4, 16, 16, 6))
    operands = inputs + mean, rng.uniform(0.5, 1.5, size=6), rng.normal(size=6)

    def ours(inputs, scale, bias):
        return FORMS[name][0](inputs, scale, bias, inputs.dtype)[0]

    def plain(inputs, scale, bias):
        return FORMS[name][1](inputs, scale, bias, inputs.dtype)[0]

    def gradients(form, dtype):
        numbers = (jnp.asarray(array, dtype) for array in (*operands, cotangent))
        return jax.device_get(jax.jit(lambda *each: jax.vjp(form, *each[:-1])[1](each[-1]))(*numbers))

    with jax.enable_x64(True):
        exact = gradients(plain, jnp.float64)
    errors = {
        form: [np.abs(one - other).max() / np.abs(other).max() for one, other in zip(found, exact, strict=True)]
        for form, found in {form: gradients(form, jnp.float32) for form in (ours, plain)}.items()
    }
    for name, error, plain_error in zip(("inputs", "scale", "bias"), errors[ours], errors[plain], strict=True):
        assert error < 3 * plain_error + 1e-6, f"{name}: {error:.1e} off, the plain form {plain_error:.1e}"


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_rms_norm_with_its_gradients(dtype, tolerance):
    inputs, scale, cotangent = draw(7, 6), draw(6, seed=1), draw(7, 6, seed=2)
    expected = inputs / np.sqrt((inputs.astype(float) ** 2).mean(axis=1, keepdims=True) + 1e-6) * scale
    np.testing.assert_allclose(norms.rms_norm(inputs, scale, jnp.float32, 1e-6), expected, rtol=1e-5, atol=1e-6)
    operands, cotangent = (jnp.asarray(inputs, dtype), jnp.asarray(scale)), jnp.asarray(cotangent, dtype)
    found, expected = (
        jax.vjp(lambda *both, form=form: form(*both, dtype, 1e-6), *operands)[1](cotangent)
        for form in (norms.rms_norm, norms.rms_norm_plain)
    )
    assert [leaf.dtype for leaf in found] == [dtype, jnp.float32]
    for ours, plain in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.astype(jnp.float32), plain.astype(jnp.float32), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_column_holds_the_same_numbers(dtype):
    numbers = np.array([[0.0], [-0.0], [1e-37], [-3.5], [3e38], [np.inf], [-np.inf], [np.nan]], dtype)
    with jax.enable_x64(dtype is np.float64):
        column = np.asarray(jax.jit(precision.as_column)(numbers))
    assert column.dtype == dtype
    np.testing.assert_array_equal(column.view(np.uint8), numbers.view(np.uint8))


@pytest.mark.parametrize("norm", [norms.layer_norm, norms.rms_norm])
def test_numbers_of_rows_are_not_written_out_for_every_place_on_cpus(norm):
    rows, width = 2**13, 2**8  # enough for XLA to leave the sums to its library
    vectors = [jnp.ones(width)] * (2 if norm is norms.layer_norm else 1)

    def loss(inputs, cotangent):
        return (norm(inputs, *vectors, jnp.float32, 1e-6) * cotangent).sum()

    both = jnp.ones((rows, width)), jnp.ones((rows, width))
    program = jax.jit(jax.value_and_grad(loss)).lower(*both).compile().as_text()
    written = re.findall(rf"ROOT .* = f32\[{rows},{width}\]\S* broadcast\(.*", program)
    assert not written, "\n".join(written)
