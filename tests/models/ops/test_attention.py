"""Attention against its plain form and JAX's own, with its gradients; bias and mask on every path.

Without a GPU, the fused path is tested by what it hands to the kernel: with JAX's plain implementation in its place,
and by the program that it makes for CUDA.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stce_jax.models.ops import attention

BATCH, HEADS, TOKENS, WIDTH = 2, 3, 7, 8
MASK = np.array([[True, True, False, True, False, True, False], [False, False, False, True, False, False, False]])
CASES = [  # shape of the bias, mask
    (None, None),
    (None, MASK),
    ((1, 1, 1, 7), None),
    ((3, 7, 7), MASK),
    ((2, 1, 1, 7), MASK),
    ((2, 3, 7, 7), None),
]


def draw(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def operands(queries=TOKENS, tokens=TOKENS, dtype=jnp.float32):
    query, key, value = (jnp.asarray(draw(BATCH, tokens, HEADS, WIDTH, seed=seed), dtype) for seed in range(3))
    return query[:, :queries], key, value


def passes(form, query, key, value, bias=None, mask=None):
    """(outputs, gradients by query, key, value and, where there is one, bias)."""

    def with_bias(query, key, value, *biases):
        return form(query, key, value, bias=biases[0] if biases else None, mask=mask)

    arguments = (query, key, value) if bias is None else (query, key, value, jnp.asarray(bias))
    outputs, pull_back = jax.vjp(jax.jit(with_bias), *arguments)
    cotangent = jnp.asarray(draw(*outputs.shape, seed=9), outputs.dtype)
    return outputs, pull_back(cotangent)


def fused(query, key, value, *, bias=None, mask=None):
    """The fused path with JAX's plain implementation in the kernel's place."""
    return attention._by_cudnn(query, key, value, attention._with_four_axes(bias), mask, implementation="xla")


@pytest.mark.slow
@pytest.mark.parametrize("form", [attention.dot_product_attention, fused], ids=["products", "fused"])
@pytest.mark.parametrize(("bias", "mask"), CASES, ids=lambda part: "masked" if part is MASK else str(part))
def test_equals_the_plain_form_with_its_gradients(form, bias, mask):
    bias = None if bias is None else draw(*bias, seed=5)
    ours = passes(form, *operands(), bias, mask)
    plain = passes(attention.attention_plain, *operands(), bias, mask)
    chex.assert_trees_all_equal_shapes(ours, plain)
    chex.assert_trees_all_close(ours, plain, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("form", [attention.dot_product_attention, fused], ids=["products", "fused"])
def test_equals_the_plain_form_in_bfloat16(form):
    bias = draw(1, HEADS, TOKENS, TOKENS, seed=5)
    ours = passes(form, *operands(dtype=jnp.bfloat16), bias, MASK)
    plain = passes(attention.attention_plain, *operands(), bias, MASK)
    for one, exact in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        error = np.abs(one.astype(jnp.float32) - exact).max() / np.abs(exact).max()
        assert error < 0.03, f"off by {error:.3f} of the largest"
    *outputs, dbias = jax.tree.leaves(ours)
    assert {array.dtype for array in outputs} == {jnp.dtype(jnp.bfloat16)} and dbias.dtype == jnp.float32


@pytest.mark.parametrize("tokens", [7, 8])
@pytest.mark.parametrize("mask", [False, True])
def test_the_fused_path_pads_what_the_kernel_needs_and_hides_it(monkeypatch, tokens, mask):
    handed = {}

    def kernel(query, key, value, bias, mask, **options):
        handed.update(query=query, bias=bias, mask=mask, **options)
        return query

    monkeypatch.setattr(attention.jax.nn, "dot_product_attention", kernel)
    mask = jnp.asarray(np.arange(2 * tokens).reshape(2, tokens) % 3 > 0) if mask else None
    attention._by_cudnn(*operands(tokens=tokens, queries=tokens), None, None)
    assert handed["query"].shape[1] == 8 and handed["bias"] is handed["mask"] is None
    lengths = handed["key_value_seq_lengths"]
    assert lengths is None if tokens == 8 else lengths.tolist() == [7, 7], "padded keys are seen"
    bias = jnp.asarray(draw(HEADS, 1, tokens)[None])
    attention._by_cudnn(*operands(tokens=tokens, queries=tokens, dtype=jnp.bfloat16), bias, mask)
    assert handed["key_value_seq_lengths"] is None
    assert handed["bias"].shape == (1, HEADS, 8, 8) and handed["bias"].dtype == jnp.bfloat16
    if mask is None and tokens == 8:
        assert handed["mask"] is None
        return
    seen = np.ones((1, tokens), bool) if mask is None else np.asarray(mask)
    expected = np.pad(seen, ((0, 0), (0, 8 - tokens)))[:, None, None, :]
    np.testing.assert_array_equal(handed["mask"], np.broadcast_to(expected, (len(seen), 1, 8, 8)))


@pytest.mark.slow
@pytest.mark.parametrize("form", [attention.dot_product_attention, fused], ids=["products", "fused"])
def test_hidden_keys_are_as_if_they_were_not_there(form):
    query, key, value = operands()
    expected = attention.dot_product_attention(query[:1], key[:1, MASK[0]], value[:1, MASK[0]])
    outputs, gradients = passes(form, query, key, value, None, MASK)
    np.testing.assert_allclose(outputs[:1], expected, atol=1e-6)
    for name, gradient in zip(("key", "value"), gradients[1:], strict=True):
        assert not np.any(gradient[~MASK]), f"a hidden {name} has a gradient"


@pytest.mark.slow
@pytest.mark.parametrize("form", [attention.dot_product_attention, fused], ids=["products", "fused"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_an_image_without_keys_gets_zeros_and_no_gradient(form, dtype):
    mask = np.stack([np.zeros(TOKENS, bool), np.ones(TOKENS, bool)])
    bias = draw(BATCH, 1, 1, TOKENS, seed=5)
    outputs, gradients = passes(form, *operands(dtype=dtype), bias, mask)
    for name, array in zip(("outputs", "query", "key", "value", "bias"), (outputs, *gradients), strict=True):
        assert np.isfinite(array.astype(jnp.float32)).all(), f"{name}: not finite"
        assert not np.any(array[0]), f"{name}: something of the image without keys"
        assert np.any(array[1]), f"{name}: nothing of the other image"
    weights = attention.attention_weights(*operands(dtype=dtype)[:2], mask=mask)
    np.testing.assert_allclose(weights.sum(axis=-1), np.broadcast_to([[[0.0]], [[1.0]]], weights.shape[:-1]), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("queries", [2, TOKENS])
@pytest.mark.parametrize("bias", [None, (HEADS, 1, TOKENS)])
def test_the_weights_are_those_of_the_outputs(queries, bias):
    query, key, value = operands(queries)
    options = {"bias": None if bias is None else draw(*bias), "mask": None if bias is None else MASK}
    weights = attention.attention_weights(query, key, **options)
    assert weights.shape == (BATCH, HEADS, queries, TOKENS)
    by_weights = np.einsum("bamn,bnae->bmae", weights, value)
    np.testing.assert_allclose(attention.dot_product_attention(query, key, value, **options), by_weights, atol=1e-5)


def test_fewer_queries_than_keys_give_the_first_outputs(monkeypatch):
    monkeypatch.setattr(attention, "_by_cudnn", None)  # not called, GPU or not
    monkeypatch.setattr(attention, "has_fused_kernel", lambda width, dtype: True)
    query, key, value = operands()
    bias = draw(1, HEADS, TOKENS, TOKENS, seed=5)

    def first(query, key, value, *, bias, mask):
        return attention.attention_plain(query, key, value, bias=bias, mask=mask)[:, :2]

    def ours(query, key, value, *, bias, mask):
        return attention.dot_product_attention(query[:, :2], key, value, bias=bias[:, :, :2], mask=mask)

    expected = passes(first, query, key, value, bias, MASK)
    chex.assert_trees_all_close(passes(ours, query, key, value, bias, MASK), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_dot_product_attention_equals_jax_with_its_gradient(scale):
    """Scaled by 100, all weights but one of a row vanish, and unshifted exponentials would overflow."""
    arrays, cotangent = scale * draw(3, 2, 7, 4, 8), draw(2, 7, 4, 8, seed=2)
    results = []
    for function in (attention.dot_product_attention, jax.nn.dot_product_attention):
        outputs, pull_back = jax.vjp(function, *arrays)
        results.append((outputs, pull_back(jnp.asarray(cotangent))))
    chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-5 * scale**2)


@pytest.mark.slow
def test_bfloat16_attention_accumulates_in_float32():
    arrays = jnp.asarray(draw(3, 1, 64, 2, 16, seed=2), jnp.bfloat16)
    cotangent = jnp.asarray(draw(1, 64, 2, 16, seed=3), jnp.bfloat16)
    results = []
    for dtype in (jnp.bfloat16, jnp.float32):
        outputs, pull_back = jax.vjp(attention.dot_product_attention, *arrays.astype(dtype))
        results.append((outputs, *pull_back(cotangent.astype(dtype))))
    for ours, exact in zip(*results, strict=True):
        assert ours.dtype == jnp.bfloat16
        error = np.abs(ours.astype(jnp.float32) - exact).max() / np.abs(exact).max()
        assert error < 0.02, f"off by {error:.3f} of the largest"
    assert attention.attention_weights(*arrays[:2]).dtype == jnp.float32


class FakeGPU:
    def __init__(self, capability):
        self.compute_capability = capability


@pytest.mark.parametrize(
    "capability, dtype, width, fits",
    [
        ("9.0", jnp.bfloat16, 64, True),
        ("8.0", jnp.float16, 64, True),
        ("7.5", jnp.bfloat16, 64, False),
        ("9.0", jnp.float32, 64, False),
        ("9.0", jnp.bfloat16, 12, False),
        ("9.0", jnp.bfloat16, 256, False),
        (None, jnp.bfloat16, 64, False),
    ],
)
def test_the_fused_kernel_is_used_where_it_exists(monkeypatch, capability, dtype, width, fits):
    device = FakeGPU(capability) if capability else object()
    monkeypatch.setattr(attention.jax, "local_devices", lambda: [device])
    assert attention.has_fused_kernel(width, dtype) == fits


def program(bias, mask, platform, dtype=jnp.bfloat16):
    """The gradient's program for a platform."""

    def loss(query, key, value, bias):
        outputs = attention.dot_product_attention(query, key, value, bias=bias, mask=mask)
        return outputs.astype(jnp.float32).sum()

    arguments = (*operands(dtype=dtype), None if bias is None else jnp.asarray(draw(*bias)))
    differentiated = (0, 1, 2) if bias is None else (0, 1, 2, 3)
    return jax.jit(jax.grad(loss, differentiated)).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("bias, mask", [(None, None), ((3, 7, 7), None), (None, MASK), ((2, 1, 1, 7), MASK)])
def test_a_program_for_cuda_calls_the_fused_kernel_forward_and_backward(monkeypatch, bias, mask):
    kernels = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(kernels, "check_cudnn_version", lambda: 91000)  # there is none here
    monkeypatch.setattr(attention, "has_fused_kernel", lambda width, dtype: True)
    text = program(bias, mask, "cuda")
    name = "fmhaSoftmax" if bias is None and mask is None else "fmhaScaleBiasSoftmax"
    assert f"__cudnn${name}(" in text and f"__cudnn${name}Backward(" in text
    assert "fmha" not in program(bias, mask, "cpu")


@pytest.mark.parametrize("kind", ["jvp", "jvp of grad", "vmap of jvp", "grad of grad"])
def test_other_derivatives_of_the_fused_kernel_name_the_switch(monkeypatch, kind):
    kernels = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(kernels, "check_cudnn_version", lambda: 91000)  # there is none here
    monkeypatch.setattr(attention, "has_fused_kernel", lambda width, dtype: True)
    _, key, value = operands(dtype=jnp.bfloat16)

    def number(query):
        return attention.dot_product_attention(query, key, value).astype(jnp.float32).sum()

    def along(query):
        return jax.jvp(number, (query,), (query,))[1]

    def derivative(query):
        if kind == "vmap of jvp":
            return jax.vmap(along)(query[None])
        if kind == "grad of grad":
            return jax.grad(lambda query: (jax.grad(number)(query) * query).astype(jnp.float32).sum())(query)
        return along(query) if kind == "jvp" else jax.jvp(jax.grad(number), (query,), (query,))[1]

    def lowered():
        return jax.jit(derivative).trace(key).lower(lowering_platforms=("cuda",)).as_text()

    with pytest.raises(TypeError, match=r"fused_kernel\(False\)") as refusal:
        lowered()
    assert "\n" not in str(refusal.value)
    with attention.fused_kernel(False):
        assert "fmha" not in lowered()


def test_a_program_for_the_cpu_takes_the_products_beside_a_gpu(monkeypatch):
    monkeypatch.setattr(attention, "has_fused_kernel", lambda width, dtype: True)
    monkeypatch.setattr(attention, "_by_cudnn", lambda query, key, value, bias, mask: jnp.full_like(query, jnp.nan))
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        arrays = jnp.asarray(draw(3, 1, 5, 2, 8), jnp.bfloat16)
        actual = jax.jit(attention.dot_product_attention)(*arrays)
        expected = jax.jit(attention.attention_by_products)(*arrays)
    np.testing.assert_array_equal(actual.astype(jnp.float32), expected.astype(jnp.float32))


def test_without_bias_and_mask_nothing_is_added_or_selected():
    plain = program(None, None, "cpu", jnp.float32)
    assert "stablehlo.select" not in plain and "stablehlo.add %" not in plain
    assert "stablehlo.select" in program(None, MASK, "cpu", jnp.float32)
    assert "stablehlo.add %" in program((3, 7, 7), None, "cpu", jnp.float32)


@pytest.mark.slow
def test_a_policy_hides_what_it_drops_and_learns_from_it():
    """Live tokens alone count, the others see themselves besides; the gradient is a product's, also at 0."""
    query, key, value = operands()
    policy = jnp.asarray(MASK[:1] | [[False], [True]], jnp.float32)  # some of the first image's, all of the second's
    find = jax.jit(attention.policy_attention)
    outputs = find(query, key, value, policy)
    plain = attention.attention_plain(query, key, value, mask=policy > 0)
    live = policy > 0
    np.testing.assert_allclose(outputs[live], plain[live], atol=1e-5)
    weights = np.asarray(attention.policy_weights(query, key, policy))
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    dropped = np.flatnonzero(policy[0] == 0)
    assert (weights[0, :, :, dropped] < 1e-6).sum() == HEADS * len(dropped) * (TOKENS - 1), "others see the dropped"
    assert (weights[0, :, dropped, dropped] > 1e-3).all(), "a dropped token does not see itself"
    with jax.enable_x64(True):
        exact = [jnp.asarray(array, jnp.float64) for array in (query, key, value, policy)]
        cotangent = jnp.asarray(draw(*outputs.shape, seed=9), jnp.float64)
        run = jax.jit(lambda policy: (attention.policy_attention(*exact[:3], policy) * cotangent).sum())
        gradient = jax.grad(run)(exact[3])
        for place in ((0, 0), (0, int(dropped[0])), (1, 2)):
            step = jnp.zeros_like(exact[3]).at[place].set(1e-6)
            numeric = (run(exact[3] + step) - run(exact[3] - step)) / 2e-6
            np.testing.assert_allclose(gradient[place], numeric, rtol=1e-4, atol=1e-8, err_msg=str(place))
        masked = attention.policy_weights(*exact[:2], exact[3], mask=jnp.asarray(MASK), bias=jnp.ones((1, 1, 1, 7)))
    masked = np.asarray(masked)
    assert (masked[0][:, :, ~MASK[0]] == 0).all()
    np.testing.assert_allclose(masked[0].sum(axis=-1)[:, MASK[0]], 1, atol=1e-12)
