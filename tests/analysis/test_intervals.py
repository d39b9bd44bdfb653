"""Intervals and tests, against SciPy, explicit loops, and how often they hold the truth."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import optimize, stats

from stce_jax.analysis import intervals
from stce_jax.analysis.intervals import (
    Interval,
    bootstrap_difference,
    mcnemar,
    mean_interval,
    paired_mean_interval,
    wilson_interval,
)

NUMBERS = arrays.arrays(np.float64, st.integers(2, 8), elements=st.floats(-100, 100))


@st.composite
def two_models(draw, most_seeds=3):
    """Hits of two models, bool [seeds, images] each."""
    shape = (draw(st.integers(1, most_seeds)), draw(st.integers(1, 40)))
    return draw(arrays.arrays(bool, shape)), draw(arrays.arrays(bool, shape))


def similar_models(rng, images, *, first=0.8, second=0.78, shared=0.7):
    """Hits [images] of two models that mostly agree, as models trained on the same images do."""
    agree = rng.random(images) < shared
    easy = rng.random(images)
    return easy < first, np.where(agree, easy, rng.random(images)) < second


@given(NUMBERS, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_mean_interval_is_scipys(values, confidence):
    found = mean_interval(values, confidence)
    if values.std() > 1e-6:
        expected = stats.t.interval(confidence, len(values) - 1, values.mean(), stats.sem(values))
        np.testing.assert_allclose(found[1:], expected, rtol=1e-9, atol=1e-9)
    assert found.mean == pytest.approx(values.mean())


def test_the_mean_interval_of_a_textbook():
    # 2.776 is Student's t for 4 degrees of freedom; the standard deviation of 1 to 5 is the root of 2.5.
    half = 2.776445 * math.sqrt(2.5 / 5)
    np.testing.assert_allclose(mean_interval([1, 2, 3, 4, 5]), (3, 3 - half, 3 + half), rtol=1e-6)


@given(NUMBERS, st.integers(0, 99))
def test_the_paired_interval_is_that_of_scipys_paired_test(first, seed):
    second = first + np.random.default_rng(seed).normal(1, 2, len(first))
    low, high = stats.ttest_rel(first, second).confidence_interval(0.95)
    np.testing.assert_allclose(paired_mean_interval(first, second)[1:], (low, high), rtol=1e-6, atol=1e-9)


@given(NUMBERS, st.floats(-50, 50))
def test_a_constant_shifts_the_mean_interval_and_swapping_negates_the_paired_one(values, constant):
    np.testing.assert_allclose(mean_interval(values + constant), np.add(mean_interval(values), constant), atol=1e-8)
    mean, low, high = paired_mean_interval(values, values[::-1])
    assert paired_mean_interval(values[::-1], values) == pytest.approx((-mean, -high, -low)), "not antisymmetric"


def test_one_seed_has_no_interval_and_equal_seeds_an_empty_one():
    mean, low, high = mean_interval([0.75])
    assert mean == 0.75 and math.isnan(low) and math.isnan(high)
    assert mean_interval([0.75] * 3) == (0.75, 0.75, 0.75)
    assert paired_mean_interval([0.5, 0.75], [0.25, 0.5]) == (0.25, 0.25, 0.25)


def explicit_bootstrap(first, second, draws, seed, over):
    """The same by lists of images and seeds, one draw at a time."""
    rng, means = np.random.default_rng(seed), []
    seeds, images = first.shape
    for _ in range(draws):
        rows = rng.integers(seeds, size=seeds) if "seeds" in over else np.arange(seeds)
        columns = rng.integers(images, size=images)
        means.append(first[rows][:, columns].mean() - second[rows][:, columns].mean())
    return np.quantile(means, [0.025, 0.975])


@pytest.mark.slow
@pytest.mark.parametrize("over", [("images",), ("seeds", "images")])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_the_bootstrap_is_that_of_lists_of_images(over, kind):
    rng = np.random.default_rng(1)
    accuracies = np.array([[0.7], [0.8], [0.9]])
    first = rng.random((3, 400)) < accuracies
    second = (rng.random((3, 400)) < 0.75) if kind == "bool" else rng.random((3, 400)) * 0.9
    found = bootstrap_difference(first, second, over=over)
    expected = explicit_bootstrap(first, second, 4000, 2, over)
    width = expected[1] - expected[0]
    assert found.mean == pytest.approx(first.mean() - second.mean())
    np.testing.assert_allclose(found[1:], expected, atol=0.05 * width, err_msg="beyond what 4000 draws leave open")


def test_resampling_seeds_widens():
    rng = np.random.default_rng(3)
    first = rng.random((4, 500)) < np.array([[0.6], [0.7], [0.8], [0.9]])
    second = rng.random((4, 500)) < 0.7
    images, both = (bootstrap_difference(first, second, over=o) for o in (("images",), ("seeds", "images")))
    assert both.mean == images.mean
    assert both.high - both.low > 2 * (images.high - images.low), "seeds that differ by 30% were not seen"


def test_the_bootstrap_agrees_with_the_normal_approximation():
    first, second = similar_models(np.random.default_rng(4), 5000)
    difference = first.astype(float) - second
    half = 1.959964 * difference.std() / math.sqrt(5000)
    found = bootstrap_difference(first, second)
    np.testing.assert_allclose(found[1:], difference.mean() + np.array([-half, half]), atol=0.05 * half)


def test_chunks_are_small_and_change_nothing_but_the_draws(monkeypatch):
    rng = np.random.default_rng(5)
    first, second = rng.random((1, 300)), rng.random((1, 300))  # 300 kinds of images
    whole = bootstrap_difference(first, second)
    monkeypatch.setattr(intervals, "CHUNK", 3000)
    sizes = []
    true_rng = np.random.default_rng

    class Watched:
        def __init__(self, seed):
            self.rng = true_rng(seed)

        def multinomial(self, count, shares, size):
            sizes.append((size, len(shares)))
            return self.rng.multinomial(count, shares, size)

    monkeypatch.setattr(np.random, "default_rng", Watched)
    chunked = bootstrap_difference(first, second, draws=9_995)
    assert max(size * kinds for size, kinds in sizes) <= 3000, "more was held at a time"
    assert sum(size for size, kinds in sizes if kinds == 300) == 9_995, "another number of draws"
    np.testing.assert_allclose(chunked, whole, atol=0.05 * (whole.high - whole.low))


@settings(max_examples=50)
@given(two_models())
def test_invariances_of_the_bootstrap(models):
    first, second = models
    few = {"draws": 200, "over": ("seeds", "images")}
    mean, low, high = bootstrap_difference(first, second, **few)
    assert -1 <= low <= high <= 1 and mean == pytest.approx(first.mean() - second.mean())
    assert bootstrap_difference(first, second, **few) == (mean, low, high), "not deterministic"
    assert bootstrap_difference(second, first, **few) == pytest.approx((-mean, -high, -low)), "swapping does not negate"
    shifted = bootstrap_difference(first + 1.0, second, **few)
    assert shifted == pytest.approx((mean + 1, low + 1, high + 1)), "a constant does not shift"
    assert bootstrap_difference(first, first, **few) == (0, 0, 0), "a model differs from itself"
    assert bootstrap_difference(first, np.zeros_like(first), **few).mean == pytest.approx(first.mean())


def test_seeds_of_which_there_are_not_equally_many_are_averaged():
    first, second = np.array([[1, 1, 0, 0], [1, 0, 0, 0]]), np.array([1, 0, 1, 0])
    assert bootstrap_difference(first, second).mean == pytest.approx(3 / 8 - 1 / 2)
    with pytest.raises(ValueError, match="not 2 and 1"):
        bootstrap_difference(first, second, over=("seeds", "images"))


def test_one_image_always_resamples_to_itself():
    assert bootstrap_difference([True], [False]) == (1, 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mean", "paired", "bootstrap", "wilson"])
def test_intervals_hold_the_truth_as_often_as_they_say(name):
    """1000 experiments of which the truth is known; 95% of intervals hold it, give or take what 1000 leave open."""
    rng, held = np.random.default_rng(6), 0
    for experiment in range(1000):
        if name == "mean":
            truth, found = 3.0, mean_interval(rng.normal(3, 2, 5))
        elif name == "paired":
            seeds = rng.normal(0, 10, 5)  # what both have in common
            truth, found = 0.5, paired_mean_interval(seeds + rng.normal(0.5, 1, 5), seeds + rng.normal(0, 1, 5))
        elif name == "bootstrap":
            first, second = similar_models(rng, 500)
            truth, found = 0.02, bootstrap_difference(first, second, draws=1000, seed=experiment)
        else:
            truth, found = 0.9, wilson_interval(rng.binomial(200, 0.9), 200)
        held += found.low <= truth <= found.high
    assert 920 <= held <= 980, f"{held} of 1000 intervals hold the truth"


@settings(max_examples=50)
@given(two_models(most_seeds=1))
def test_mcnemar_counts_coins(models):
    (first,), (second,) = models
    only_first, only_second, p_value = mcnemar(first, second)
    pairs = list(zip(first.tolist(), second.tolist(), strict=True))
    assert (only_first, only_second) == (pairs.count((True, False)), pairs.count((False, True)))
    coins, rarer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(coins, count) for count in range(rarer + 1)) / 2**coins
    assert p_value == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(second, first) == (only_second, only_first, pytest.approx(p_value))


def test_mcnemar_by_hand():
    # 9 heads and 1 tail: (1 + 10) of 1024 sequences are as uneven on each side.
    first, second = [True] * 9 + [False] + [True] * 5, [False] * 9 + [True] + [True] * 5
    assert mcnemar(first, second) == (9, 1, pytest.approx(22 / 1024))
    assert mcnemar(first, first) == (0, 0, 1.0)


@pytest.mark.parametrize("hits, count", [(0, 10), (10, 10), (1, 1), (37, 50), (4321, 5000)])
@pytest.mark.parametrize("confidence, quantile", [(0.95, 1.959964), (0.5, 0.67449)])
def test_wilsons_interval_ends_where_the_score_test_does(hits, count, confidence, quantile):
    mean, low, high = wilson_interval(hits, count, confidence)
    assert mean == hits / count

    def excess(accuracy):
        """How much farther the mean lies from this accuracy than the score test allows."""
        return abs(mean - accuracy) - quantile * math.sqrt(accuracy * (1 - accuracy) / count)

    # The mean itself is a root of `excess` where it is 0 or 1, hence the margin beside it.
    expected_low = optimize.brentq(excess, 1e-9, min(mean, 1 - 1e-9), xtol=1e-12) if hits else 0
    expected_high = optimize.brentq(excess, max(mean, 1e-9), 1 - 1e-9, xtol=1e-12) if hits < count else 1
    np.testing.assert_allclose((low, high), (expected_low, expected_high), atol=1e-6)


@pytest.mark.parametrize(
    "call, cause",
    [
        (lambda: mean_interval([]), "at least one"),
        (lambda: mean_interval([[1, 2]]), "one number a seed"),
        (lambda: mean_interval([1, 2], confidence=95), "between 0 and 1"),
        (lambda: paired_mean_interval([1, 2], [1, 2, 3]), "same seeds"),
        (lambda: paired_mean_interval([], []), "at least one"),
        (lambda: bootstrap_difference([], []), "no images"),
        (lambda: bootstrap_difference(np.zeros((2, 0)), np.zeros((2, 0))), "no images"),
        (lambda: bootstrap_difference([1, 0], [1, 0, 1]), "same images"),
        (lambda: bootstrap_difference([1, 0], [1, 0], over=("seeds",)), "over must be"),
        (lambda: mcnemar([], []), "at least one"),
        (lambda: mcnemar([[1, 0]], [[1, 0]]), "images"),
        (lambda: mcnemar([1, 0], [1]), "same images"),
        (lambda: wilson_interval(0, 0), "0 images"),
        (lambda: wilson_interval(3, 2), "3 hits of 2"),
    ],
)
def test_what_has_no_answer_is_refused(call, cause):
    with pytest.raises(ValueError, match=cause):
        call()


def test_an_interval_is_a_tuple_with_names():
    assert Interval(1.0, 0.5, 1.5)._asdict() == {"mean": 1.0, "low": 0.5, "high": 1.5}
