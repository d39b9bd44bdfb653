"""How good logits are: accuracy, cross entropy, confusion and calibration, in NumPy alone.

Shape letters: n images, C classes.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

BINS = 15  # of confidence, as in Guo et al.


def of_images(logits: Float[np.ndarray, "n C"], labels: Int[np.ndarray, "n"]) -> dict[str, np.ndarray]:
    """Scores of each image by itself, as the evaluation step counts them: of equal logits the first class's is ahead.

    An image with a NaN among its logits is a miss: it has no predicted class, and its loss and confidence are NaN.

    Args:
      logits: of the images.
      labels: 0..C - 1.

    Returns:
      {"label": int64, "predicted": int64, -1 for none, "loss": float64, "confidence": float64, the largest softmax
      probability, "top1", "top5": bool}, each [n].
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    numbers = ~np.isnan(logits).any(axis=1)  # [n]
    own = logits[np.arange(len(labels)), labels][:, None]  # [n, 1]
    earlier = np.arange(logits.shape[1]) < labels[:, None]  # [n, C]
    ahead = ((logits > own) | ((logits == own) & earlier)).sum(axis=1)  # [n]
    largest = logits.max(axis=1, keepdims=True)  # [n, 1]
    with np.errstate(invalid="ignore"):  # inf - inf is the NaN that it should be
        total = np.exp(logits - largest).sum(axis=1)  # [n]
        loss = np.log(total) + (largest - own)[:, 0]
    return {
        "label": labels,
        "predicted": np.where(numbers, logits.argmax(axis=1), -1),
        "loss": loss,
        "confidence": 1 / total,
        "top1": numbers & (ahead < 1),
        "top5": numbers & (ahead < 5),
    }


def summary(images: dict[str, np.ndarray], class_count: int) -> dict[str, Any]:
    """Scores of all images.

    Args:
      images: of `of_images`.
      class_count: C.

    Returns:
      {"images": n, "loss", "top1", "top5": means, "balanced_accuracy": mean of the classes' top1, those without images
      left out, as scikit-learn has it, "calibration_error", "reliability": see `calibration`, "per_class": see
      `per_class`, "confusion": see `confusion`}.
    """
    classes = per_class(images["label"], images["top1"], class_count)
    error, bins = calibration(images["confidence"], images["top1"])
    return {
        "images": len(images["label"]),
        **{name: float(images[name].mean()) for name in ("loss", "top1", "top5")},
        "balanced_accuracy": float(np.mean([row["top1"] for row in classes if row["images"]])),
        "calibration_error": error,
        "reliability": bins,
        "per_class": classes,
        "confusion": confusion(images["label"], images["predicted"], class_count),
    }


def per_class(labels: Int[np.ndarray, "n"], hits: Bool[np.ndarray, "n"], class_count: int) -> list[dict[str, Any]]:
    """[{"images", "top1"}] of the classes in turn; "top1" is None for a class without images."""
    counts = np.bincount(labels, minlength=class_count)
    right = np.bincount(labels, weights=hits, minlength=class_count)
    return [
        {"images": int(count), "top1": float(good / count) if count else None}
        for count, good in zip(counts, right, strict=True)
    ]


def confusion(
    labels: Int[np.ndarray, "n"], predicted: Int[np.ndarray, "n"], class_count: int
) -> Int[np.ndarray, "C C"]:
    """How many images of a class (row) were taken for a class (column), without those taken for -1."""
    known = predicted >= 0
    cells = labels[known] * class_count + predicted[known]
    return np.bincount(cells, minlength=class_count**2).reshape(class_count, class_count)  # [C * C] -> [C, C]


def calibration(
    confidence: Float[np.ndarray, "n"], hits: Bool[np.ndarray, "n"], bins: int = BINS
) -> tuple[float, list[dict[str, Any]]]:
    """Expected calibration error: how far confidence is from accuracy, on average over the images (Guo et al. 2017).

    Args:
      confidence: the probability given to the predicted class, 0..1.
      hits: whether that class was right.
      bins: number of equally wide bins (from, to] of confidence.

    Returns:
      (the error, 0..1, NaN if a confidence is; [{"from", "to", "images", "confidence", "top1"}] of the bins, the last
      two means, None in an empty bin).

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3.
    """
    edges = np.linspace(0, 1, bins + 1)
    known = ~np.isnan(confidence)
    places = np.clip(np.searchsorted(edges, confidence[known], side="left") - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    sums = [np.bincount(places, weights=values[known], minlength=bins) for values in (confidence, hits)]
    error = float(np.abs(sums[0] - sums[1]).sum() / len(confidence)) if known.all() else float("nan")
    return error, [
        {
            "from": float(edges[place]),
            "to": float(edges[place + 1]),
            "images": int(count),
            "confidence": float(sums[0][place] / count) if count else None,
            "top1": float(sums[1][place] / count) if count else None,
        }
        for place, count in enumerate(counts)
    ]


def softmax(logits: Float[np.ndarray, "n C"]) -> Float[np.ndarray, "n C"]:
    """Probabilities, in float64."""
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
