"""Losses and scores of images with several labels against scikit-learn and plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, softmax
from sklearn.metrics import average_precision_score, log_loss

from stce_jax.analysis import label_sets
from stce_jax.recipe.losses import binary_cross_entropy
from stce_jax.recipe.mixing import mix, soft_label_sets
from stce_jax.recipe.objectives import MULTI_LABEL, SINGLE_LABEL, average_precisions, mean_average_precision


def example(count=60, classes=5, seed=0, levels=0):
    """Logits, rounded to few values where `levels` is given, and labels; the last class has none."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.standard_normal((count, classes)).astype(np.float32)
    labels = (rng.random((count, classes)) < 0.3).astype(np.int32)
    labels[0, :-1], labels[:, -1] = 1, 0
    return (np.round(logits * levels / 6) if levels else logits), labels


@given(st.integers(1, 40), st.integers(0, 1000), st.sampled_from([0, 1, 3]))
def test_average_precision_is_scikit_learns_with_ties_or_without(count, seed, levels):
    logits, labels = example(count, seed=seed, levels=levels)
    found = average_precisions(logits, labels)
    expected = [average_precision_score(labels[:, k], logits[:, k]) for k in range(4)]
    np.testing.assert_allclose(found[:4], expected, rtol=1e-12)
    assert np.isnan(found[4]), "a class that no image has"
    assert mean_average_precision(logits, labels) == pytest.approx(np.mean(expected), rel=1e-12)
    shuffled = np.random.default_rng(seed).permutation(count)
    assert mean_average_precision(logits[shuffled], labels[shuffled]) == pytest.approx(np.mean(expected), rel=1e-12)


def test_average_precision_by_hand():
    """Ranks 1, 3 and 4 of five are right: precisions 1/1, 2/3, 3/4, each for a third of the recall."""
    logits, labels = np.array([[5.0], [4], [3], [2], [1]]), np.array([[1], [0], [1], [1], [0]])
    assert average_precisions(logits, labels)[0] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_no_number_and_no_label_have_no_score():
    logits, labels = example()
    logits[3, 1] = np.nan
    assert np.isnan(average_precisions(logits, labels)[1]) and np.isnan(mean_average_precision(logits, labels))
    assert np.isnan(mean_average_precision(logits[:, :1], np.zeros((60, 1), np.int32)))


def test_the_loss_is_the_mean_over_the_classes():
    logits, labels = example()
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    each = [log_loss(row, p, labels=[0, 1]) for row, p in zip(labels, probabilities, strict=True)]
    (found,) = MULTI_LABEL.scores(jnp.asarray(logits), jnp.asarray(labels)).values()
    np.testing.assert_allclose(found, each, rtol=1e-5)
    np.testing.assert_allclose(label_sets.of_images(logits, labels)["loss"], each, rtol=1e-9)
    np.testing.assert_allclose(label_sets.probabilities(logits), probabilities, rtol=1e-12)
    far = np.array([[-1e4, 1e4]], np.float32)
    assert label_sets.of_images(far, np.array([[0, 1]]))["loss"][0] == 0
    assert label_sets.probabilities(far).tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("options", [{"mixup": 1.0, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}])
def test_smoothed_sets_are_mixed_as_the_pixels_are(options):
    """Images of one colour each: the share of the other colour is the share of the other image's labels."""
    labels = jnp.array([[1, 1, 0], [0, 1, 1], [0, 0, 0], [1, 0, 0]])
    targets = soft_label_sets(labels, smoothing=0.1)
    np.testing.assert_allclose(targets, 0.9 * np.array(labels) + 0.05, rtol=1e-6)
    images = jnp.broadcast_to(jnp.arange(4.0).reshape(4, 1, 1, 1), (4, 8, 8, 3))
    mixed, found = mix(jax.random.key(1), images, targets, switch_probability=0.5, **options)
    share = float(mixed[0].mean())  # of image 1, whose colour is 1, in image 0
    assert 0.05 < share < 0.95
    np.testing.assert_allclose(found[0], (1 - share) * targets[0] + share * targets[1], rtol=1e-4)
    mean = (1 - share) * np.array(binary_cross_entropy(jnp.ones((1, 3)), targets[:1])) + share * np.array(
        binary_cross_entropy(jnp.ones((1, 3)), targets[1:2])
    )
    np.testing.assert_allclose(binary_cross_entropy(jnp.ones((1, 3)), found[:1]), mean, rtol=1e-4)


def test_the_summary_counts_each_label():
    logits, labels = example()
    found = label_sets.summary(label_sets.of_images(logits, labels), 5)
    assert found["images"] == 60 and found["map"] == mean_average_precision(logits, labels)
    assert [row["images"] for row in found["per_class"]] == labels.sum(axis=0).tolist()
    assert [row["ap"] for row in found["per_class"]][:4] == average_precisions(logits, labels)[:4].tolist()
    assert found["per_class"][4] == {"images": 0, "ap": None}


@pytest.mark.parametrize("objective", [SINGLE_LABEL, MULTI_LABEL])
def test_logits_of_several_views_are_those_of_their_mean_probabilities(objective):
    logits = np.random.default_rng(0).normal(0, 4, (5, 3, 4))  # [V, B, K]
    probabilities = softmax if objective is SINGLE_LABEL else expit
    options = {"axis": -1} if objective is SINGLE_LABEL else {}
    expected = probabilities(logits, **options).mean(axis=0)
    found = np.asarray(objective.of_views(jnp.asarray(logits, jnp.float32)))
    np.testing.assert_allclose(probabilities(found, **options), expected, rtol=1e-5)
    far = objective.of_views(jnp.full((2, 1, 2), 300.0) * jnp.array([1.0, -1.0]))
    assert np.isfinite(far).all(), "probabilities that float32 rounds to 0 and 1 have no logit"
