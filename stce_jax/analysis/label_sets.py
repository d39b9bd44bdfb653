"""How good logits are where an image may have several labels: cross entropy and average precision, in NumPy alone.

Shape letters: n images, C classes.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from stce_jax.recipe.objectives import average_precisions, mean_of_classes


def of_images(logits: Float[np.ndarray, "n C"], labels: Int[np.ndarray, "n C"]) -> dict[str, np.ndarray]:
    """What `summary` needs of images: {"label": int64 [n, C], "logits": float32 [n, C], "loss": float64 [n]}.

    The loss is binary cross entropy, the mean over the classes, as the evaluation step has it.
    """
    labels, exact = np.asarray(labels, np.int64), np.asarray(logits, np.float64)
    losses = np.maximum(exact, 0) - exact * labels + np.log1p(np.exp(-np.abs(exact)))  # [n, C]
    return {"label": labels, "logits": logits, "loss": losses.mean(axis=1)}


def summary(images: dict[str, np.ndarray], class_count: int) -> dict[str, Any]:
    """Scores of all images.

    Args:
      images: of `of_images`.
      class_count: C.

    Returns:
      {"images": n, "loss": mean, "map": mean average precision, "per_class": [{"images": that have the label, "ap":
      average precision, None of a class without images}]}.
    """
    labels, logits = images["label"], images["logits"]
    counts, precisions = labels.sum(axis=0).tolist(), average_precisions(logits, labels)
    return {
        "images": len(labels),
        "loss": float(images["loss"].mean()),
        "map": mean_of_classes(precisions, labels),
        "per_class": [
            {"images": count, "ap": precision if count else None}
            for count, precision in zip(counts, precisions.tolist(), strict=True)
        ],
    }


def probabilities(logits: Float[np.ndarray, "n C"]) -> Float[np.ndarray, "n C"]:
    """The probability of each label by itself, in float64."""
    return 0.5 * (1.0 + np.tanh(0.5 * np.asarray(logits, np.float64)))  # the sigmoid, without overflow
