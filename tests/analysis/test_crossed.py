"""Differences over seeds and images at once, and Holm's correction."""

import numpy as np
import pytest
from scipy import stats

from stce_jax.analysis.crossed import crossed_mean, holm
from stce_jax.analysis.intervals import bootstrap_difference, paired_mean_interval


def made(rng, seeds, images, *, of_seeds, of_images, both, mean=0.0):
    values = mean + rng.normal(0, of_seeds, (seeds, 1)) + rng.normal(0, of_images, (1, images))
    return values + rng.normal(0, both, (seeds, images))


@pytest.mark.parametrize("of_seeds", [0.0, 0.02])
@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_hold_the_truth_as_often_as_they_say(seeds, of_seeds):
    """Where seeds differ and where they do not; both are drawn anew each time."""
    rng = np.random.default_rng(seeds)
    drawn = (made(rng, seeds, 200, of_seeds=of_seeds, of_images=0.3, both=0.3) for _ in range(600))
    found = [crossed_mean(values) for values in drawn]
    held = np.mean([low <= 0 <= high for low, high in (each.interval() for each in found)])
    assert 0.93 <= held <= 0.995
    false = np.mean([each.p_value < 0.05 for each in found])
    assert false == pytest.approx(1 - held, abs=1e-9), "p values and intervals disagree"


def test_over_images_that_do_not_matter_it_is_the_paired_t():
    """Each image adds nothing of its own: what is left are the seeds."""
    values = np.repeat([[0.01], [0.03], [0.05]], 50, axis=1)
    found, expected = crossed_mean(values), paired_mean_interval([0.01, 0.03, 0.05], [0.0, 0.0, 0.0])
    assert found.freedom == pytest.approx(2)
    np.testing.assert_allclose(found.interval(), expected[1:], rtol=1e-9)


def test_it_is_never_narrower_than_the_images_alone():
    rng = np.random.default_rng(1)
    for _ in range(20):
        first, second = rng.random((2, 3, 400)) < 0.7
        values = first.astype(float) - second
        low, high = crossed_mean(values).interval()
        images = bootstrap_difference(first, second, draws=2000)
        assert high - low > 0.9 * (images.high - images.low)


def test_what_it_gives_is_the_formula():
    values = np.array([[1.0, 0, 0, -1, 1], [0.0, 1, 0, 0, 1], [1.0, 1, 0, -1, 0]])
    seeds, images = values.shape
    mean_squares = {
        "seeds": images * values.mean(1).var(ddof=1),
        "images": seeds * values.mean(0).var(ddof=1),
    }
    rest = values - values.mean(1, keepdims=True) - values.mean(0, keepdims=True) + values.mean()
    both = (rest**2).sum() / 8
    by_seeds = max(mean_squares["seeds"], both)
    total = by_seeds + mean_squares["images"] - both
    found = crossed_mean(values)
    assert found.error == pytest.approx(np.sqrt(total / 15)) and found.freedom == pytest.approx(
        total**2 / (by_seeds**2 / 2)
    )
    assert found.p_value == pytest.approx(2 * stats.t.sf(found.mean / found.error, found.freedom))


@pytest.mark.parametrize(("difference", "p_value"), [(0.0, 1.0), (1.0, 0.0)])
def test_a_difference_without_any_spread(difference, p_value):
    found = crossed_mean(np.full((3, 4), difference))
    assert found.p_value == p_value and found.interval() == (difference, difference)


@pytest.mark.parametrize("shape", [(1, 10), (3, 1), (10,)])
def test_too_few_are_refused(shape):
    with pytest.raises(ValueError, match="at least two of each"):
        crossed_mean(np.zeros(shape))


def test_holm_equals_a_count_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_holm_counts_what_is_not_yet_known():
    """What a later comparison brings can make no earlier one significant that was not, nor undo one that was."""
    assert holm([0.01, None, None, 0.02]) == [pytest.approx(0.04), None, None, pytest.approx(0.06)]
    rng = np.random.default_rng(0)
    for _ in range(50):
        p_values = rng.random(6).tolist()
        partly = holm([*p_values[:3], None, None, None])
        assert all(late <= early + 1e-12 for late, early in zip(holm(p_values)[:3], partly[:3], strict=True))


def test_holm_refuses_what_is_no_p_value():
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.1, 1.5])
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([float("nan")])
