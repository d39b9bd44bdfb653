"""Losses of a batch's images, and whether their labels are among the highest logits.

Shape letters: B batch, K classes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int


def soft_target_cross_entropy(
    logits: Float[Array, "B K"], targets: Float[Array, "B K"], class_weights: Float[np.ndarray, "K"] | None = None
) -> Float[Array, "B"]:
    """Cross entropy with targets that are distributions over the classes, as mixup and label smoothing give them.

    With `class_weights` w it is -sum_k w_k t_k log p_k, PyTorch's `cross_entropy` with weights and probabilities as
    targets: an image that mixes two classes has the mixed loss of both. Its mean over a batch divides by the images,
    as PyTorch's does there, not by their weights, so that no image's share depends on the others.
    """
    if class_weights is not None:
        targets = targets * jnp.asarray(class_weights, targets.dtype)
    return optax.softmax_cross_entropy(logits, targets)


def cross_entropy(logits: Float[Array, "B K"], labels: Int[Array, "B"]) -> Float[Array, "B"]:
    """Cross entropy with one label per image."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def binary_cross_entropy(logits: Float[Array, "B K"], targets: Float[Array, "B K"]) -> Float[Array, "B"]:
    """Mean over the classes of the cross entropy of "has the label", with targets 0..1 for each class by itself."""
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean(axis=-1)


def top_hits(logits: Float[Array, "B K"], labels: Int[Array, "B"]) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """1 where the label has the highest logit, and where it is among the five highest, else 0.

    An image with a NaN among its logits is a miss: top_k takes NaN for the greatest of all numbers.
    """
    _, ranked = jax.lax.top_k(logits, min(5, logits.shape[-1]))  # [B, 5]
    valid = ~jnp.isnan(logits).any(axis=-1, keepdims=True)  # [B, 1]
    matches = ((ranked == labels[:, None]) & valid).astype(jnp.float32)
    return matches[:, 0], matches.sum(axis=-1)
