"""What a range test tells of its losses, against plain loops and curves whose landmarks are known."""

import numpy as np
import pytest
from PIL import Image

from stce_jax.analysis.learning_rates import draw, growing, has_diverged, smoothed, suggest

RATES = growing(1e-6, 1.0, 100)
# Falls around 1e-4 by half, along a logistic curve in the logarithm, and rises from 1e-2 on, in the logarithm's square.
CURVE = 2 - 1 / (1 + (1e-4 / RATES) ** 2) + 3 * np.maximum(np.log10(RATES) + 2, 0) ** 2


def test_smoothing_is_a_gaussian_that_ends_where_the_steps_end():
    losses = np.random.default_rng(0).normal(size=37)
    for spread in (0.25, 2.5, 20.0):
        expected = []
        for place in range(37):
            weights = [np.exp(-0.5 * ((place - other) / spread) ** 2) for other in range(37)]
            near = [abs(place - other) <= np.ceil(3 * spread) for other in range(37)]
            expected.append(np.average(losses, weights=np.array(weights) * near))
        np.testing.assert_allclose(smoothed(losses, spread), expected, rtol=1e-12)
    assert smoothed([3.0], 2.5) == [3.0] and smoothed(np.ones(9), 2.5) == pytest.approx(np.ones(9))


def test_rates_grow_by_one_factor():
    assert growing(1e-3, 10.0, 5) == pytest.approx([1e-3, 1e-2, 1e-1, 1.0, 10.0])


def test_the_landmarks_of_a_known_curve_are_found():
    noisy = CURVE + 0.01 * np.random.default_rng(0).normal(size=100)
    for losses in (CURVE, noisy):
        found = suggest(RATES, losses, 2.5)
        assert found["lowest"] == pytest.approx(RATES[CURVE.argmin()], rel=1.0) and 2e-3 < found["lowest"] < 2e-2
        assert found["steepest"] == pytest.approx(1e-4, rel=0.6)
        assert found["suggestion"] == float(f"{found['lowest'] / 10:.1e}")


@pytest.mark.parametrize("losses", [np.ones(100), 1 + RATES, np.random.default_rng(0).normal(2.3, 0.1, 100)])
def test_a_loss_that_does_not_fall_suggests_nothing(losses):
    assert suggest(RATES, losses, 2.5) == dict.fromkeys(("suggestion", "lowest", "steepest"))


def test_a_loss_has_diverged_at_four_times_its_lowest():
    losses = [2.0] * 20 + [1.0] * 20
    assert not has_diverged(losses, 2.5) and not has_diverged([*losses, *[3.9] * 20], 2.5)
    assert has_diverged([*losses, *[4.1] * 20], 2.5)
    assert not has_diverged([*losses, 6.0], 2.5), "one bad step is no divergence"


def test_the_picture_marks_what_is_suggested(tmp_path):
    found = {"learning_rates": RATES, "losses": CURVE, "smoothed": smoothed(CURVE, 2.5)}
    draw(found | suggest(RATES, CURVE, 2.5), tmp_path / "fall.svg")
    text = (tmp_path / "fall.svg").read_text()
    assert "suggested, a tenth of the lowest" in text and "config.optimizer.learning_rate" in text
    draw(found | suggest(RATES, np.ones(100), 2.5), tmp_path / "flat.png")
    with Image.open(tmp_path / "flat.png") as picture:
        assert min(picture.size) > 300
