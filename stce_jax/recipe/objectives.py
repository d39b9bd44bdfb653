"""What a run minimises and counts: images with one label each, or with any number.

Shape letters: B batch, K classes, V views, n images.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from stce_jax.recipe.losses import binary_cross_entropy, cross_entropy, soft_target_cross_entropy, top_hits

Logits = Float[Array, "B K"]
Values = dict[str, Float[Array, "B"]]


class Objective(NamedTuple):
    """What the steps compute of logits, image by image.

    Attributes:
      loss: (logits, targets [B, K]) -> loss [B], in training.
      hits: (logits, targets) -> what training logs beside the loss.
      hit_names: of what that returns.
      scores: (logits, labels) -> what an evaluation gives the means of, "loss" first.
      of_all: {name: what an evaluation computes of all images together, (logits [n, K], labels [n, K]) -> a number}.
      of_views: logits [V, B, K] of several views of each image -> the logits of their mean probabilities.
    """

    loss: Callable[[Logits, Float[Array, "B K"]], Float[Array, "B"]]
    hits: Callable[[Logits, Float[Array, "B K"]], Values]
    hit_names: tuple[str, ...]
    scores: Callable[[Logits, Int[Array, "B ..."]], Values]
    of_all: dict[str, Callable[[Any, Any], float]]
    of_views: Callable[[Float[Array, "V B K"]], Logits]


def mean_average_precision(logits: Float[np.ndarray, "n K"], labels: Int[np.ndarray, "n K"]) -> float:
    """Mean of the classes' average precision, those without an image that has them left out; NaN if all are."""
    return mean_of_classes(average_precisions(logits, labels), labels)


def mean_of_classes(precisions: Float[np.ndarray, "K"], labels: Int[np.ndarray, "n K"]) -> float:
    """The mean of those of the classes that an image has; NaN if there is none."""
    known = precisions[labels.any(axis=0)]
    return float(known.mean()) if known.size else float("nan")


def average_precisions(logits: Float[np.ndarray, "n K"], labels: Int[np.ndarray, "n K"]) -> Float[np.ndarray, "K"]:
    """Average precision of each class: sum over the ranks of (recall - recall before) x precision.

    As scikit-learn's `average_precision_score`: without interpolation, images of equal logits have one rank. NaN of a
    class that no image has, and of one with a NaN among its logits.
    """
    return np.array([_average_precision(*column) for column in zip(logits.T, labels.T, strict=True)])


def _average_precision(logits: Float[np.ndarray, "n"], labels: Int[np.ndarray, "n"]) -> float:
    if not labels.any() or np.isnan(logits).any():
        return float("nan")
    order = np.argsort(-logits, kind="stable")
    ranked = logits[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # of each rank
    hits = np.cumsum(labels[order])[last]
    return float((np.diff(hits, prepend=0) / hits[-1] * (hits / (last + 1))).sum())


def _hits(logits: Logits, targets: Float[Array, "B K"]) -> Values:
    top1, top5 = top_hits(logits, targets.argmax(axis=-1))
    return {"top1": top1, "top5": top5}


def _scores(logits: Logits, labels: Int[Array, "B"]) -> Values:
    top1, top5 = top_hits(logits, labels)
    return {"loss": cross_entropy(logits, labels), "top1": top1, "top5": top5}


def _mean_class(logits: Float[Array, "V B K"]) -> Logits:
    return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - jnp.log(len(logits))


def _mean_labels(logits: Float[Array, "V B K"]) -> Logits:
    has, lacks = (jax.nn.logsumexp(jax.nn.log_sigmoid(sign * logits), axis=0) for sign in (1, -1))
    return has - lacks


SINGLE_LABEL = Objective(soft_target_cross_entropy, _hits, ("top1", "top5"), _scores, {}, _mean_class)
MULTI_LABEL = Objective(
    binary_cross_entropy,
    lambda logits, targets: {},
    (),
    lambda logits, labels: {"loss": binary_cross_entropy(logits, labels.astype(jnp.float32))},
    {"map": mean_average_precision},
    _mean_labels,
)
