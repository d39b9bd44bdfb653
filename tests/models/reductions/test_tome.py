"""ToMe against the numbers of its published code, and what follows from its definition."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import (
    EXACT,
    SINGLE,
    SINGLE_GRADIENT,
    assert_close,
    check_block,
    check_vision_transformer,
    golden,
    sown,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from stce_jax.errors import ConfigError
from stce_jax.models.factory import create_model
from stce_jax.models.reductions.tome import ToMe, capped, match, membership, merge, places, schedule
from stce_jax.models.tokens import Tokens

CORES = (
    "tome_core_t17_r4",
    "tome_core_t16_r5_sized",
    "tome_core_t18_r5_distill",
    "tome_core_t12_r3_nocls",
    "tome_core_t17_r100_capped",
    "tome_core_t24_r11_capped",
    "tome_core_t3_r5",
)
QUICK = ("tome_core_t12_r3_nocls", "tome_core_t18_r5_distill")  # the others in the slow tier
DTYPES = [np.float64, np.float32]


def reduce_alone(values, metric, r, leading, sizes=None, mask=None):
    """(tokens, places) of values of which r merge."""
    tokens, matching = Tokens(values, sizes, mask, leading=leading), match(metric, r, leading=leading, mask=mask)
    if matching is None:
        return tokens, jnp.broadcast_to(jnp.arange(values.shape[1]), values.shape[:2])
    return merge(tokens, matching), places(matching, values.shape[1], leading)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in CORES])
def test_cores_equal_the_golden_numbers(name, dtype):
    arrays = golden("reductions", name)
    leading = int(arrays["cfg_class_token"]) + int(arrays["cfg_distill_token"])
    r, exact = int(arrays["cfg_r"]), dtype == np.float64
    with jax.enable_x64(True):
        values, metric = (jnp.asarray(arrays[f"in_{part}"], dtype) for part in ("x", "metric"))
        sizes = jnp.asarray(arrays["in_size"][..., 0], dtype) if "in_size" in arrays else None

        @jax.jit
        @partial(jax.grad, has_aux=True)
        def run(values):
            matching = match(metric, r, leading=leading)
            merged, where = reduce_alone(values, metric, r, leading, sizes)
            equal, _ = reduce_alone(values, metric, r, leading)  # sizes ignored
            total = (merged.values * arrays["cotangent"].astype(dtype)).sum()
            return total, (matching, merged, where, membership(where, merged.shape[1]), equal)

        gradient, (matching, merged, where, source, equal) = run(values)
    for own, theirs in zip(matching, ("src", "dst", "unm"), strict=True):
        assert_close(own, arrays[f"out_{theirs}_idx"], 0, theirs)
    assert capped(r, values.shape[1], leading) == arrays["out_r_effective"]
    tolerance = EXACT if exact else SINGLE
    assert_close(merged.values, arrays["out_x"], tolerance, "tokens")
    assert_close(merged.sizes, arrays["out_size"][..., 0], tolerance, "sizes")
    assert_close(source.astype(np.int8), arrays["out_source"], 0, "membership")
    assert_close(equal.values, arrays["out_merge_mean"], tolerance, "means")
    assert_close(equal.values * equal.sizes[..., None], arrays["out_merge_sum"], tolerance, "sums")
    unmerged = np.take_along_axis(np.asarray(merged.values), np.asarray(where)[..., None], axis=1)
    if leading < 2:  # the published way back forgets that a distillation token was put second
        assert_close(unmerged, arrays["out_unmerge"], tolerance, "copied back")
    assert_close(gradient, arrays["grad_x"], EXACT if exact else SINGLE_GRADIENT, "gradient")


@pytest.mark.parametrize("name", ["tome_core_t17_r0", "tome_core_t2_r1_nothing"])
def test_where_nothing_can_merge_tokens_stay(name):
    arrays = golden("reductions", name)
    assert match(jnp.asarray(arrays["in_metric"]), int(arrays["cfg_r"]), leading=1) is None
    np.testing.assert_array_equal(arrays["out_x"], arrays["in_x"])
    assert arrays["out_r_effective"] <= 0


def test_the_schedule_equals_the_published_one():
    arrays = golden("reductions", "tome_parse_r")
    for layers, r, inflection, expected in zip(
        *(arrays[part] for part in ("cfg_layers", "in_r", "in_inflect", "out_schedule")), strict=True
    ):
        assert schedule(int(r), int(layers), float(inflection)) == [amount for amount in expected if amount >= 0]
    assert schedule((4, 2), 4) == [4, 2, 0, 0] and schedule((4,), 3) == [4, 4, 4] == schedule(4, 3)
    assert schedule(3, 1, -1.0) == [6]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["tome_block_n17_r5", "tome_block_n16_r4_sized", "tome_block_n17_r4_noprop"])
def test_blocks_equal_the_golden_numbers(name, dtype):
    arrays = golden("reductions", name)
    proportional = bool(arrays["cfg_prop_attn"])
    with jax.enable_x64(True):
        sizes = jnp.asarray(arrays["in_size"][..., 0], dtype) if "in_size" in arrays else None
        tokens = Tokens(
            None, sizes, leading=1, initial_grid=(1, arrays["in_x"].shape[1] - 1), proportional=proportional
        )
        module = ToMe(r=int(arrays["cfg_r"]), proportional=proportional)
        reduced = check_block(arrays, module, dtype, tokens)
    assert_close(reduced.sizes, arrays["out_size"][..., 0], EXACT, "sizes")
    assert reduced.proportional == proportional


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "module", "dtype"),
    [
        ("tome_model_r8", ToMe((0, 1, 2, 3), r=8), np.float64),
        ("tome_model_r6_decreasing", ToMe(r=6, inflection=-1.0, blocks=(0, 1, 2, 3)), np.float64),
        ("tome_model_haurum05", ToMe((1, 2), keep_rate=0.5), np.float64),
        ("tome_model_haurum05", ToMe((1, 2), keep_rate=0.5), np.float32),
    ],
)
def test_models_equal_the_golden_numbers(name, module, dtype):
    arrays = golden("reductions", name)
    left = check_vision_transformer(arrays, module, dtype)
    assignments = [
        left[f"blocks_{block}"]["reduction"]["assignment"][0]
        for block in range(4)
        if "reduction" in left[f"blocks_{block}"]
    ]
    for block, assignment in zip((1, 2), assignments, strict=False):
        if f"out_cluster_idx_block{block}" in arrays:
            assert_close(assignment, arrays[f"out_cluster_idx_block{block}"].astype(int), 0, f"block {block}")
    if "out_source" in arrays:
        source = None
        for assignment in assignments:
            where = np.pad(np.asarray(assignment) + 1, ((0, 0), (1, 0)))  # the class token stays in front
            source = membership(jnp.asarray(where), int(where.max()) + 1, source)
        assert_close(np.asarray(source).astype(np.int8), arrays["out_source"], 0, "membership of the first tokens")
        assert_close(left["blocks_3"]["__call__"][0].sizes, arrays["out_size"][..., 0], 0.0, "sizes")


def test_counts_are_those_of_deit_small():
    """Tokens without the class token."""
    study = {0.9: [176, 158, 142], 0.7: [137, 96, 67], 0.5: [98, 49, 25], 0.25: [98, 61, 52]}
    for rate, counts in study.items():
        assert ToMe((3, 6, 9), keep_rate=rate).counts((14, 14), 3) == counts
    assert ToMe().counts((14, 14), 12) == [196 - 13 * block for block in range(1, 13)]
    assert ToMe(r=(100, 30)).counts((14, 14), 4) == [98, 68, 68, 68]


MASKED = 5  # tokens behind the real ones


@partial(jax.jit, static_argnums=(3, 4))
def with_and_without_masked_tokens(values, metric, sizes, r, leading):
    def padded(part, number):
        return jnp.pad(part, ((0, 0), (0, MASKED), *[(0, 0)] * (part.ndim - 2)), constant_values=number)

    masked = (padded(values, np.nan), padded(metric, np.nan), r, leading, padded(sizes, 1.0))
    mask = padded(jnp.ones(values.shape[:2], bool), False)
    return reduce_alone(values, metric, r, leading, sizes), reduce_alone(*masked, mask)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "leading", "r"), [(8, 1, 5), (7, 0, 3), (9, 2, 3)])
@settings(max_examples=5)
@given(seed=st.integers(0, 2**32 - 1))
def test_merging_keeps_the_sum_and_its_own_account(count, leading, r, seed):
    """What is masked, here behind the rest, changes nothing of it; sizes, values and membership say the same."""
    rng = np.random.default_rng(seed)
    values, metric = rng.normal(size=(2, count, 3)), rng.normal(size=(2, count, 4))
    sizes = rng.integers(1, 5, (2, count)).astype(float)
    with jax.enable_x64(True):
        (plain, where), (masked, masked_where) = with_and_without_masked_tokens(values, metric, sizes, r, leading)
        source = np.asarray(membership(where, plain.shape[1]))
    np.testing.assert_array_equal(source.sum(axis=1), 1)
    np.testing.assert_array_equal(source @ sizes[..., None], plain.sizes[..., None])
    sums = source @ (values * sizes[..., None])
    np.testing.assert_allclose(sums, plain.values * plain.sizes[..., None], atol=1e-12)
    np.testing.assert_allclose(plain.values[:, :leading], values[:, :leading], atol=1e-12)
    real = np.asarray(masked.mask)
    assert (real.sum(axis=1) == plain.shape[1]).all()
    assert masked.shape[1] == count + MASKED - capped(r, count + MASKED, leading)
    assert (np.asarray(masked.sizes) > 0).all()
    for image in range(2):
        np.testing.assert_allclose(masked.values[image][real[image]], plain.values[image], atol=1e-12)
        assert real[image][masked_where[image, :count]].all(), "a real token went to one that is not"


@pytest.mark.slow
def test_masked_tokens_are_nowhere_in_the_pictures():
    mask = np.asarray([[True, True, True, False, True, False]])
    keys = np.random.default_rng(0).normal(size=(1, 6, 2, 4)).astype(np.float32)

    @jax.jit
    def run(keys):
        return sown(ToMe(r=2), Tokens(jnp.ones((1, 6, 2)), mask=mask, initial_grid=(1, 6)), {"key": keys}, train=False)

    reduced, left = run(keys)
    np.testing.assert_array_equal(left["assignment"] < 0, ~mask)
    assert reduced.shape[1] == 4 and reduced.mask.sum() == 2  # both of the even places that can


@pytest.mark.slow
def test_a_model_trained_without_it_runs_with_it():
    """Here without a class token."""
    options = {"num_classes": 5, "image_size": 16, "width": 16, "depth": 2, "heads": 2, "mlp_dim": 24, "patch_size": 4}
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    plain = create_model("vit_ti_patch", pooling="mean", **options)
    variables = jax.jit(partial(plain.init, train=False))(jax.random.key(0), images)
    merging = create_model("vit_ti_patch", pooling="mean", reduction="tome", r=2, inflection=-1.0, **options)
    none = create_model("vit_ti_patch", pooling="mean", reduction="tome", r=0, **options)

    @jax.jit
    def run(variables, images):
        logits = [model.apply(variables, images, train=False) for model in (plain, merging, none)]
        return logits, merging.apply(variables, images, train=False, method="tokens")

    (logits, merged, unmerged), tokens = run(variables, images)
    assert tokens.shape[1] == merging.token_counts(16, 16)[-1] == 16 - 4 - 0
    np.testing.assert_array_equal(tokens.sizes.sum(axis=1), 16)
    assert 1e-6 < np.abs(merged - logits).max() < 0.5 * np.abs(logits).max()
    np.testing.assert_allclose(unmerged, logits, atol=1e-6)


def test_wrong_options_are_one_line():
    for wrong, message in [
        ({"r": -1}, "r is -1; it must be a whole number"),
        ({"r": (4, 2.5)}, "r is 2.5"),
        ({"r": ()}, "r is None"),
        ({"r": (4, 2, 1), "blocks": (1, 2)}, "r lists 3 numbers for 2 blocks"),
        ({"inflection": 1.5}, "inflection is 1.5; it must be between -1 and 1"),
        ({"inflection": 1, "r": (4, 2)}, "inflection changes one r"),
        ({"inflection": 1, "keep_rate": 0.5}, "inflection changes one r"),
        ({"keep_rate": 0.0}, "keep_rate is 0.0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            ToMe(**wrong).check()
    with pytest.raises(ConfigError, match="r lists 3 numbers for 2 blocks"):
        ToMe(r=(4, 2, 1)).counts((4, 4), 2)
