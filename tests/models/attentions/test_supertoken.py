"""Super-token attention against the golden numbers of SViT's published code, and what follows from its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import golden, last, weights_of
from golden_svit import DTYPES, attention, check

from stce_jax.errors import ConfigError
from stce_jax.models.attentions.supertoken import SuperTokenAttention
from stce_jax.models.ops.supertoken import associate

GOLDEN = (
    "svit_sta_8x8_s2_it3",
    "svit_sta_4x4_s4_single_stoken",
    "svit_sta_7x7_s1_direct",
    "svit_sta_8x12_s4x3_it1",
    "svit_sta_14x10_s4_it1_padded",
    "svit_sta_16x16_s4_it1",
    "svit_sta_norefine_8x8_s4_it2",
)
QUICK = {("svit_sta_norefine_8x8_s4_it2", np.float64)}  # the others compile for more than a second


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def variables_of(module, features, seed=1):
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros(features)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=[] if (name, dtype) in QUICK else pytest.mark.slow)
        for name in GOLDEN
        for dtype in DTYPES
    ],
)
def test_equals_the_golden_numbers_with_its_gradients(name, dtype):
    arrays = golden("reductions", name)
    refine, cell = bool(arrays["cfg_refine"]), tuple(map(int, arrays["cfg_stoken_size"]))
    module = SuperTokenAttention(int(arrays["cfg_heads"]), cell, int(arrays["cfg_n_iter"]), refine, dtype)
    params = attention(weights_of(arrays), "stoken_refine.") if refine else {}
    gradients = {name.removeprefix("grad."): array for name, array in arrays.items() if name.startswith("grad.")}
    gradients = {"params": attention(gradients, "stoken_refine.")} if refine else {}
    inputs = (last(arrays["in_x"]),)
    expected = gradients, (last(arrays["grad_x"]),)
    check(module.apply, {"params": params}, inputs, last(arrays["cotangent"]), last(arrays["out_x"]), expected, dtype)


@pytest.mark.parametrize("name", ["svit_part_mhsa"])
def test_attention_alone_equals_the_golden_numbers(name):
    arrays = golden("reductions", name)
    module = SuperTokenAttention(3, 1, dtype=np.float64)  # the file does not say its heads; 3 heads of 8 reproduce it
    variables, gradients = {"params": attention(weights_of(arrays))}, ({}, (last(arrays["grad_x"]),))
    inputs = (last(arrays["in_x"]),)
    check(module.apply, variables, inputs, last(arrays["cotangent"]), last(arrays["out_x"]), gradients, np.float64)


def test_without_refinement_it_aggregates_and_scatters():
    features = jnp.asarray(draw(2, 7, 9, 4), jnp.float32)

    @jax.jit
    def both(features):
        association = associate(features, (2, 3), 2)
        scattered = association.scatter(association.aggregate(features))
        return SuperTokenAttention(2, (2, 3), 2, refine=False).apply({}, features), scattered

    np.testing.assert_array_equal(*both(features))


@pytest.mark.slow
def test_sows_the_attention_of_the_super_tokens():
    module, shape = SuperTokenAttention(2, (2, 3)), (2, 5, 7, 4)
    variables, features = variables_of(module, shape), jnp.asarray(draw(*shape), jnp.float32)
    outputs, sown = jax.jit(lambda *inputs: module.apply(*inputs, mutable="intermediates"))(variables, features)
    (weights,) = sown["intermediates"]["attention"]
    assert outputs.shape == features.shape and weights.shape == (2, 2, 9, 9)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)


@pytest.mark.slow
def test_in_bfloat16_it_stays_near_float32():
    shape = (2, 6, 6, 8)
    variables = variables_of(SuperTokenAttention(2, 2), shape)
    features = jnp.asarray(draw(*shape), jnp.bfloat16)
    wide, narrow = (
        jax.jit(SuperTokenAttention(2, 2, dtype=dtype).apply)(variables, features)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_allclose(narrow.astype(jnp.float32), wide, atol=0.05 * float(jnp.abs(wide).max()))


@pytest.mark.parametrize(
    ("options", "channels", "message"),
    [
        ({"heads": 2, "iterations": 0}, 4, "iterations is 0; it must be a whole number between 1"),
        ({"heads": 2, "cell": (2, 0)}, 4, "cell is (2, 0)"),
        ({"heads": 2, "cell": 1, "refine": False}, 4, "leave refine=True"),
        ({"heads": 3}, 4, "4 channels cannot be divided among 3 heads"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(options, channels, message):
    with pytest.raises(ConfigError) as error:
        SuperTokenAttention(**options).init(jax.random.key(0), jnp.zeros((1, 4, 4, channels)))
    assert message in str(error.value) and "\n" not in str(error.value)
