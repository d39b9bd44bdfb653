"""ATS against the numbers of the comparison study's code, and what follows from its definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import EXACT, SINGLE, SINGLE_GRADIENT, assert_close, check_block, check_vision_transformer, golden
from hypothesis import given, settings
from hypothesis import strategies as st

from stce_jax.errors import ConfigError
from stce_jax.models.reductions.ats import ATS, keep_hit, sampled, sampling_points, significance
from stce_jax.models.tokens import Tokens

CORES = (
    "ats_haurum_core_n17_K9",
    "ats_haurum_core_n17_K17_full",
    "ats_haurum_core_n10_K12",
    "ats_haurum_core_n20_K11_masked",
    "ats_haurum_core_n9_K1_none",
    "ats_haurum_core_n9_K2_one_sample",
)
DTYPES = [np.float64, np.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CORES)
def test_cores_equal_the_golden_numbers(name, dtype):
    """Which tokens are hit, and the rows of attention that are computed for them."""
    arrays = golden("reductions", name)
    rows = arrays["out_ids"].shape[1]
    points = sampling_points(int(arrays["cfg_sample_count"]))

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def run(attention, value, mask):
        scores = significance(attention[:, :, 0], value.swapaxes(1, 2))[:, 1:]
        hit = sampled(scores, points, mask[:, 1:])
        batch, heads, count, _ = attention.shape
        places = jnp.broadcast_to(jnp.arange(count, dtype=dtype)[None, :, None], (batch, count, 1))
        values = jnp.concatenate([attention.swapaxes(1, 2).reshape(batch, count, -1), places], axis=2)
        tokens = keep_hit(Tokens(values, leading=1, mask=mask), hit, min(len(points), hit.shape[1]))
        outputs = tokens.values[:, :, :-1].reshape(batch, -1, heads, count).swapaxes(1, 2)
        total = (outputs[:, :, :rows] * arrays["cotangent"].astype(dtype)).sum()  # zero where nothing is taken
        return total, (outputs, tokens.values[..., -1], tokens.mask)

    with jax.enable_x64(True):
        inputs = [jnp.asarray(arrays[f"in_{part}"], dtype) for part in ("attn", "v")]
        gradient, (outputs, places, mask) = run(*inputs, arrays["in_mask"])
    assert outputs.shape[2] == min(len(points), arrays["in_attn"].shape[2] - 1) + 1 >= rows
    assert_close(mask[:, :rows], arrays["out_mask"], 0, "mask")
    assert not mask[:, rows:].any()
    assert_close(places[:, :rows].astype(int), arrays["out_ids"], 0, "places")
    live = np.broadcast_to(arrays["out_mask"][:, None, :, None], arrays["out_attn"].shape)
    exact = dtype == np.float64
    assert_close(outputs[:, :, :rows][live], arrays["out_attn"][live], EXACT if exact else SINGLE, "attention")
    assert_close(gradient, arrays["grad_attn"], EXACT if exact else SINGLE_GRADIENT, "gradient of the attention")


@pytest.mark.parametrize("name", CORES)
def test_the_points_are_those_of_the_published_code(name):
    arrays = golden("reductions", name)
    points = sampling_points(int(arrays["cfg_sample_count"]))
    np.testing.assert_allclose(points, arrays["cfg_sample_steps"], rtol=0, atol=1e-15)


def test_rounding_gives_some_numbers_of_samples_a_point_more():
    more = [samples for samples in range(2, 400) if len(sampling_points(samples)) == samples]
    assert len(more) == 86 and more[:7] == [3, 7, 12, 14, 19, 27, 34]
    assert all(len(sampling_points(samples)) == samples - 1 for samples in {*range(1, 400)} - set(more))


def test_counts_are_those_of_deit_small():
    """The most tokens after stages 1 to 3 of 196, without the class token: those that Top-K keeps."""
    study = {0.9: [176, 158, 142], 0.7: [137, 96, 67], 0.5: [98, 49, 24], 0.25: [49, 12, 3]}
    for rate, counts in study.items():
        assert ATS(keep_rate=rate).counts((14, 14), 3) == counts
    assert ATS(keep_rate=(0.8, 1.0)).counts((2, 5), 2) == [8, 8], "there are no more than there were"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_block_equals_the_golden_numbers(dtype):
    arrays = golden("reductions", "ats_haurum_block_n17_K9")
    initial = arrays["in_x"].shape[1] - 1
    module = ATS(keep_rate=(int(arrays["cfg_sample_count"]) - 1) / initial)
    tokens = Tokens(None, leading=1, initial_grid=(1, initial), mask=jnp.asarray(arrays["in_mask"]))
    reduced = check_block(arrays, module, dtype, tokens)
    assert_close(reduced.mask, arrays["out_mask"], 0, "mask")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_equals_the_golden_numbers(dtype):
    arrays = golden("reductions", "ats_haurum_model_keep07")
    blocks = tuple(map(int, arrays["cfg_reduction_loc"]))
    module = ATS(blocks, keep_rate=float(arrays["cfg_keep_rate"]))
    sown = check_vision_transformer(arrays, module, dtype, counts_are_bounds=True)
    for block in blocks:
        expected = arrays[f"out_mask_block{block}"]
        mask, count = sown[f"blocks_{block}"]["__call__"][0].mask, expected.shape[1]
        assert_close(mask[:, :count], expected, 0, f"mask after block {block}")
        assert not mask[:, count:].any()


def test_what_it_leaves_for_the_log_and_the_pictures():
    """The number of live tokens of each image under the block's name, and where each went."""
    rng = np.random.default_rng(0)
    query, key, value = rng.normal(size=(3, 4, 13, 2, 5))
    query[1:] *= 8.0  # attention of few tokens
    tokens = Tokens(jnp.asarray(rng.normal(size=(4, 13, 10))), leading=1, initial_grid=(1, 12))
    module = ATS((2, 5), keep_rate=0.8, stage=1)
    given = {"query": jnp.asarray(query), "key": jnp.asarray(key), "value": jnp.asarray(value)}

    def apply(*mutable):
        return jax.jit(lambda tokens, given: module.apply({}, tokens, given, train=True, mutable=mutable))(
            tokens, given
        )

    reduced, left = jax.device_get(apply("metrics", "intermediates"))
    live = reduced.mask[:, 1:]
    assert reduced.shape == (4, 8, 10) and reduced.grid is None
    assert left["metrics"].keys() == {"tokens_block_5"}
    assert_close(left["metrics"]["tokens_block_5"], live.sum(axis=1).astype(np.float32), 0, "live tokens")
    assert len(set(map(int, live.sum(axis=1)))) > 1, "all images have as many"
    (assignment,) = left["intermediates"]["assignment"]
    assert assignment.shape == (4, 12)
    for image in range(4):
        (kept,) = np.nonzero(assignment[image] >= 0)
        np.testing.assert_array_equal(assignment[image, kept], np.arange(live[image].sum()))
        np.testing.assert_array_equal(reduced.values[image, 1 : len(kept) + 1], tokens.values[image, kept + 1])
    assert not apply("batch_stats")[1], "left, though nobody asks"


@settings(max_examples=8)
@given(st.sampled_from([1, 4, 8]), st.integers(0, 2**32 - 1), st.booleans())
def test_hits_are_the_nearest_of_the_real_tokens(samples, seed, masked):
    """Against NumPy, token by token; a mask is the same as the tokens' absence."""
    rng = np.random.default_rng(seed)
    scores, points = rng.exponential(size=(3, 11)) ** 3, sampling_points(samples)
    mask = rng.random((3, 11)) < 0.6 if masked else np.ones((3, 11), bool)
    with jax.enable_x64(True):
        hit = np.asarray(sampled(jnp.asarray(np.where(mask, scores, 0.0)), points, jnp.asarray(mask)))
        kept = keep_hit(Tokens(jnp.asarray(rng.normal(size=(3, 12, 2))), leading=1), jnp.asarray(hit), len(points))
    for image in range(3):
        (real,) = np.nonzero(mask[image])
        upto = np.cumsum(scores[image, real]) / (scores[image, real].sum() + 1e-6)
        expected = {int(real[np.abs(upto - point).argmin()]) for point in points} if len(real) else set()
        assert set(np.flatnonzero(hit[image])) == expected
    np.testing.assert_array_equal(np.asarray(kept.mask).sum(axis=1), 1 + hit.sum(axis=1))


def test_wrong_options_are_one_line():
    with pytest.raises(ConfigError, match=r"keep_rate is 1.5; it must be above 0 and at most 1"):
        ATS(keep_rate=1.5).check()
    with pytest.raises(ConfigError, match="leaves none of 16 tokens at stage 2 of 2"):
        ATS(keep_rate=0.2).counts((4, 4), 2)
