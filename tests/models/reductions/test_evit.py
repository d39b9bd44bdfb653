"""EViT and Top-K against the numbers of their published code, and what follows from their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import EXACT, SINGLE, SINGLE_GRADIENT, assert_close, check_block, check_vision_transformer, golden
from hypothesis import given, settings
from hypothesis import strategies as st

from stce_jax.errors import ConfigError
from stce_jax.models.reductions.evit import MOST_PROGRAMS, EViT, keep_and_fuse, scheduled
from stce_jax.models.reductions.topk import TopK, keep, most_attended
from stce_jax.models.tokens import Tokens

CORES = (
    "evit_core_n17_k07_fuse",
    "evit_core_n17_k07_nofuse",
    "evit_core_n10_k05_fuse",
    "evit_core_n10_k099_keepall",
    "evit_core_n17_k1",
    "evit_core_haurum_n17_k049_fuse",
    "topk_core_haurum_n17_k05",
)
MODELS = {
    "evit_model_fuse07": EViT((1, 2)),
    "evit_model_nofuse05": EViT((1, 2), keep_rate=0.5, fuse=False),
    "evit_model_haurum05": EViT((1, 2), keep_rate=0.5, counting="initial"),
    "topk_model_haurum07": TopK((1, 2)),
}
DTYPES = [np.float64, np.float32]


def core(arrays, dtype):
    """(function of values and attention, values, attention) of a golden file "*_core_*"."""
    fuse = bool(arrays.get("cfg_fuse", 0))
    initial = int(arrays["cfg_init_n"]) if "cfg_init_n" in arrays else None
    module = EViT(keep_rate=float(arrays["cfg_keep_rate"]), counting="initial" if initial else "current", fuse=fuse)

    def run(values, attention):
        scores = attention[:, :, 0, 1:].mean(axis=1)
        count = module.kept(scores.shape[1], initial, 0)
        kept = most_attended(scores, count)
        tokens = Tokens(values, leading=1)
        if count == scores.shape[1]:
            return tokens, kept
        return (keep_and_fuse(tokens, scores, kept) if fuse else keep(tokens, kept)), kept

    return run, jnp.asarray(arrays["in_x"], dtype), jnp.asarray(arrays["in_attn"], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CORES)
def test_cores_equal_the_golden_numbers(name, dtype):
    arrays = golden("reductions", name)
    with jax.enable_x64(True):
        run, values, attention = core(arrays, dtype)
        tokens, kept = jax.jit(run)(values, attention)
        gradients = jax.jit(
            jax.grad(lambda *inputs: (run(*inputs)[0].values * arrays["cotangent"].astype(dtype)).sum(), (0, 1))
        )(values, attention)
    exact = dtype == np.float64
    assert_close(tokens.values, arrays["out_x"], EXACT if exact else SINGLE, "tokens")
    if "out_idx" in arrays:
        assert_close(kept, arrays["out_idx"], 0, "places")
    for gradient, kind in zip(gradients, ("x", "attn"), strict=True):
        assert_close(gradient, arrays[f"grad_{kind}"], EXACT if exact else SINGLE_GRADIENT, f"gradient of {kind}")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "module"),
    [("evit_block_n17_k07", EViT()), ("evit_block_n17_k05_nofuse", EViT(keep_rate=0.5, fuse=False))],
)
def test_blocks_equal_the_golden_numbers(name, module, dtype):
    check_block(golden("reductions", name), module, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, np.float64) for name in MODELS), (next(iter(MODELS)), np.float32)]
)
def test_models_equal_the_golden_numbers(name, dtype):
    arrays = golden("reductions", name)
    rates = np.atleast_1d(arrays["cfg_keep_rate"])
    module = MODELS[name]
    blocks = tuple(np.flatnonzero(rates < 1)) if len(rates) > 1 else tuple(arrays["cfg_reduction_loc"])
    check_vision_transformer(arrays, module.clone(blocks=tuple(map(int, blocks))), dtype)


def test_the_schedule_of_training_equals_the_published_one():
    arrays = golden("reductions", "evit_keep_rate_schedule")
    start, end = int(arrays["cfg_warmup_epochs"]), int(arrays["cfg_total_epochs"])
    for iteration, expected in zip(arrays["in_iteration"], arrays["out_keep_rate"], strict=True):
        epoch = iteration / int(arrays["cfg_iters_per_epoch"])
        rate = scheduled(epoch, float(arrays["cfg_base_keep_rate"]), start, end - start)
        np.testing.assert_allclose(rate, expected, atol=1e-12, err_msg=f"iteration {iteration}")


def test_training_has_few_programs_that_follow_the_schedule():
    module = EViT(keep_rate=0.6, shrink_start_epoch=2, shrink_epochs=4)
    epochs = np.linspace(0, 8, 400)
    rates = [module.at_epoch(epoch).keep_rate[0] for epoch in epochs]
    assert len(set(rates)) == MOST_PROGRAMS and rates[0] == 1.0 and rates[-1] == 0.6
    exact = [scheduled(epoch, 0.6, 2, 4) for epoch in epochs]
    np.testing.assert_allclose(rates, exact, atol=0.5 * 0.4 / (MOST_PROGRAMS - 1) + 1e-9)
    assert rates == sorted(rates, reverse=True)
    listed = EViT(keep_rate=(0.8, 0.5), shrink_epochs=4, blocks=(1, 2))
    assert listed.at_epoch(0.0).keep_rate == (1.0, 1.0) and listed.at_epoch(9.0).keep_rate == (0.8, 0.5)
    assert EViT().at_epoch(3.0) == EViT()


def test_counts_are_those_of_deit_small():
    """Tokens after stages 1 to 3 of 196, without the class token."""
    official = {0.9: [178, 162, 147], 0.7: [139, 99, 71], 0.5: [99, 51, 27], 0.25: [50, 14, 5]}
    study = {0.9: [176, 158, 142], 0.7: [137, 96, 67], 0.5: [98, 49, 24], 0.25: [49, 12, 3]}
    for rate, counts in official.items():
        assert EViT(keep_rate=rate).counts((14, 14), 3) == counts
    for rate, counts in study.items():
        assert TopK(keep_rate=rate).counts((14, 14), 3) == counts
        assert EViT(keep_rate=rate, counting="initial").counts((14, 14), 3) == [count + 1 for count in counts]


@settings(max_examples=8)  # each count is another program
@given(st.integers(1, 11), st.integers(0, 2**32 - 1))
def test_kept_and_fused_weigh_what_there_was(count, seed):
    """The fused token is what the class token would have taken from the dropped ones."""
    rng = np.random.default_rng(seed)
    values, scores = rng.normal(size=(2, 13, 4)), rng.dirichlet(np.ones(12), size=2)
    with jax.enable_x64(True):
        kept = most_attended(jnp.asarray(scores), count)
        reduced = keep_and_fuse(Tokens(jnp.asarray(values), leading=1), jnp.asarray(scores), kept)
        reduced, kept = np.asarray(reduced.values), np.asarray(kept)
    weights = np.take_along_axis(scores, kept, axis=1)
    total = (weights[..., None] * reduced[:, 1:-1]).sum(axis=1) + reduced[:, -1]
    np.testing.assert_allclose(total, (scores[..., None] * values[:, 1:]).sum(axis=1), atol=1e-12)
    assert (np.diff(weights) <= 0).all(), "not in descending order"
    np.testing.assert_array_equal(reduced[:, 0], values[:, 0])


def test_wrong_options_are_one_line():
    for wrong, message in [
        ({"keep_rate": 0.0}, "keep_rate is 0.0; it must be above 0 and at most 1"),
        ({"keep_rate": 1.5}, "keep_rate is 1.5"),
        ({"keep_rate": (0.5, 0.5)}, "keep_rate lists 2 rates for 3 blocks"),
        ({"counting": "all"}, "counting"),
        ({"shrink_epochs": -1.0}, "shrink_epochs"),
    ]:
        with pytest.raises(ConfigError, match=message):
            EViT(**wrong).check()
    with pytest.raises(ConfigError, match="leaves none of 16 tokens at stage 2 of 2"):
        TopK(keep_rate=0.2).counts((4, 4), 2)
