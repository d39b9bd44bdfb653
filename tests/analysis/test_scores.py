"""Scores against scikit-learn, the evaluation step, and a plain loop."""

import warnings

import jax
import numpy as np
import pytest
from sklearn import metrics

from stce_jax.analysis import scores
from stce_jax.training import step
from stce_jax.training.mesh import make_mesh


def example(count=500, classes=7, seed=0, spread=2.0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    logits = random.normal(size=(count, classes)).astype(np.float32) * spread
    logits[np.arange(count), labels] += 1.5
    return logits, labels


def softmax(logits):
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def loop_calibration(confidence, hits, bins=15):
    """Guo et al.'s sum over bins ((m - 1) / M, m / M], one image at a time."""
    error = 0.0
    for m in range(1, bins + 1):
        inside = [i for i, value in enumerate(confidence) if (m - 1) / bins < value <= m / bins]
        if inside:
            accuracy = sum(bool(hits[i]) for i in inside) / len(inside)
            mean = sum(float(confidence[i]) for i in inside) / len(inside)
            error += len(inside) / len(confidence) * abs(accuracy - mean)
    return error


def test_means_are_scikit_learns():
    logits, labels = example()
    found = scores.summary(scores.of_images(logits, labels), 7)
    classes = range(7)
    assert found["images"] == 500
    assert found["top1"] == pytest.approx(metrics.accuracy_score(labels, logits.argmax(axis=1)), abs=1e-12)
    assert found["top5"] == pytest.approx(metrics.top_k_accuracy_score(labels, logits, k=5, labels=classes), abs=1e-12)
    assert found["loss"] == pytest.approx(metrics.log_loss(labels, softmax(logits), labels=classes), rel=1e-9)


def test_confusion_and_classes_are_scikit_learns():
    logits, labels = example(classes=12)
    labels[labels == 4] = 5  # a class without images
    found = scores.summary(scores.of_images(logits, labels), 12)
    predicted = logits.argmax(axis=1)
    expected = metrics.confusion_matrix(labels, predicted, labels=range(12))
    np.testing.assert_array_equal(found["confusion"], expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of predicted classes without images
        balanced = metrics.balanced_accuracy_score(labels, predicted)
    assert found["balanced_accuracy"] == pytest.approx(balanced, abs=1e-12), "the class without images counts"
    recalls = metrics.recall_score(labels, predicted, labels=range(12), average=None, zero_division=np.nan)
    for number, (row, recall) in enumerate(zip(found["per_class"], recalls, strict=True)):
        assert row["images"] == (labels == number).sum(), f"images of class {number}"
        assert row["top1"] is None if number == 4 else row["top1"] == pytest.approx(recall, abs=1e-12)


@pytest.mark.parametrize("spread", [0.1, 2.0, 30.0], ids=["unsure", "usual", "certain"])
def test_calibration_error_is_that_of_a_plain_loop(spread):
    logits, labels = example(spread=spread)
    by_image = scores.of_images(logits, labels)
    np.testing.assert_allclose(by_image["confidence"], softmax(logits).max(axis=1), rtol=1e-12)
    error, bins = scores.calibration(by_image["confidence"], by_image["top1"])
    assert error == pytest.approx(loop_calibration(by_image["confidence"], by_image["top1"]), abs=1e-12)
    filled = [part for part in bins if part["images"]]
    assert sum(part["images"] for part in filled) == 500
    total = sum(part["images"] * abs(part["confidence"] - part["top1"]) for part in filled) / 500
    assert total == pytest.approx(error, abs=1e-12), "the bins do not add up to the error"
    for part in filled:
        assert part["from"] < part["confidence"] <= part["to"]
    assert all(part["confidence"] is part["top1"] is None for part in bins if not part["images"])


def test_confidences_on_the_edges_of_bins():
    """An edge belongs to the bin below it; 1.0 to the last one."""
    confidence = np.array([1.0, 1.0, 1 / 15, 2 / 15, 0.4])
    hits = np.array([True, False, True, False, True])
    error, bins = scores.calibration(confidence, hits)
    counts = [part["images"] for part in bins]
    assert counts == [1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2], counts
    assert error == pytest.approx((2 * abs(1 - 0.5) + 14 / 15 + 2 / 15 + 0.6) / 5, abs=1e-12)


def test_perfect_and_certain():
    logits = np.full((4, 3), -1000, np.float32)
    logits[np.arange(4), [0, 1, 2, 0]] = 1000
    perfect = scores.summary(scores.of_images(logits, [0, 1, 2, 0]), 3)
    assert (perfect["loss"], perfect["top1"], perfect["calibration_error"]) == (0, 1, 0)
    wrong = scores.summary(scores.of_images(logits, [1, 2, 0, 1]), 3)
    assert (wrong["loss"], wrong["top1"], wrong["top5"], wrong["calibration_error"]) == (2000, 0, 1, 1)


def test_one_class():
    found = scores.summary(scores.of_images(np.zeros((3, 1), np.float32), [0, 0, 0]), 1)
    assert (found["loss"], found["top1"], found["top5"], found["calibration_error"]) == (0, 1, 1, 0)
    assert found["confusion"].tolist() == [[3]]


def test_ties_and_no_numbers_count_as_in_the_evaluation_step():
    """Against the sums of `make_eval_step`, over logits with many equal ones, infinities and NaN."""
    random = np.random.default_rng(1)
    logits = random.integers(-2, 3, (400, 9)).astype(np.float32)
    logits[::7, 3] = -np.inf
    labels = random.integers(0, 9, 400).astype(np.int32)
    labels[::7] = 2
    logits[5, 2] = logits[6, :] = np.nan

    class Given:
        def apply(self, variables, images, train, mutable):
            return images, {}

    run = step.make_eval_step(Given(), lambda images: images, mesh=make_mesh())
    sums = jax.device_get(run({}, {"image": logits, "label": labels, "weight": np.ones(400, np.float32)}))
    found = scores.of_images(logits, labels)
    assert (found["top1"].sum(), found["top5"].sum()) == (sums["top1"], sums["top5"])
    assert np.isnan(sums["loss"]) and np.isnan(found["loss"]).sum() == 2
    numbers = ~np.isnan(logits).any(axis=1)
    sums = run({}, {"image": logits, "label": labels, "weight": numbers.astype(np.float32)})
    assert found["loss"][numbers].sum() == pytest.approx(float(sums["loss"]), rel=1e-5)


def test_an_image_of_no_numbers_is_a_miss_without_a_class():
    logits, labels = example(count=20)
    logits[3, 0] = np.nan
    logits[4, labels[4]] = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = scores.summary(scores.of_images(logits, labels), 7)
    assert np.isnan(found["loss"]) and np.isnan(found["calibration_error"])
    assert found["confusion"].sum() == 19 and found["images"] == 20
    assert sum(part["images"] for part in found["reliability"]) == 18
    others = scores.of_images(*(np.delete(rows, 3, axis=0) for rows in (logits, labels)))
    assert found["top1"] == pytest.approx(others["top1"].sum() / 20)
