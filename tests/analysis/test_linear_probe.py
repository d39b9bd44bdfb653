"""Logistic regression on features: equal to scikit-learn's own on standardised ones, its penalty chosen by rule."""

import numpy as np
import pytest

from stce_jax.analysis.linear_probe import STRENGTHS, fit_probe


def blobs(rng, count, classes, spread):
    labels = np.arange(count) % classes
    centres = np.random.default_rng(1).normal(size=(classes, 12))
    features = centres[labels] + spread * rng.normal(size=(count, 12))
    return (100 + 7 * features).astype(np.float32), labels


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 5])
def test_logits_are_those_of_scikit_learn(classes):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, labels = blobs(np.random.default_rng(0), 300, classes, 1.0)
    found = fit_probe(features, labels, np.arange(300) % 10 == 0, classes, (0.1,))
    own = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(features, labels)
    logits = features @ found.kernel + found.bias
    assert logits.shape == (300, classes)
    shifted = logits - logits.max(axis=1, keepdims=True)
    probabilities = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, own.predict_proba(features), atol=2e-3)


@pytest.mark.slow
def test_of_equally_good_penalties_the_strongest_is_taken_and_noise_wants_a_strong_one():
    rng = np.random.default_rng(0)
    features, labels = blobs(rng, 200, 4, 0.01)
    held = np.arange(200) % 5 == 0
    easy = fit_probe(features, labels, held, 4)
    assert easy.strength == STRENGTHS[0] and set(easy.held_out.values()) == {1.0}
    assert easy.hits(features, labels).all()
    noisy = fit_probe(np.hstack([blobs(rng, 200, 4, 2.0)[0], rng.normal(size=(200, 150))]), labels, held, 4)
    assert noisy.strength < 1 and noisy.held_out[noisy.strength] == max(noisy.held_out.values())


def test_a_feature_that_is_always_the_same_does_no_harm():
    features, labels = blobs(np.random.default_rng(0), 100, 3, 0.1)
    features[:, 0] = 5.0
    found = fit_probe(features, labels, np.arange(100) % 5 == 0, 3, (1.0,))
    assert np.isfinite(found.kernel).all() and found.hits(features, labels).all()
