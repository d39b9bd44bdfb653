"""What a model's modules leave beside the logits: numbers for the loss and for the log, see `models.reductions`.

Shape letters: B batch.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Float

from stce_jax.errors import ConfigError, shown
from stce_jax.processes.stop_flag import FLAG

LOSSES, METRICS = "losses", "metrics"  # collections
# What the lines of metrics.jsonl, steps and evaluations have anyway.
TAKEN = {
    *("step", "epoch", "split", "loss", "top1", "top5", "map", "gradient_norm", "skipped"),
    *("learning_rate", "images_per_second", "data_wait", "count", "rows", FLAG),
}


def added_loss(left: Mapping[str, Any], loss: Float[Array, ""]) -> Float[Array, ""]:
    """A loss and all scalars that modules have left to be added to it."""
    for value in _by_path(left, LOSSES).values():
        loss = loss + value.astype(loss.dtype)
    return loss


def left_metrics(left: Mapping[str, Any]) -> dict[str, Float[Array, "B"]]:
    """{name: float32 values of the images} of what modules have left for the log.

    What several modules leave under one name is averaged.

    Args:
      left: the collections that `model.apply(..., mutable=[METRICS, ...])` gives back.

    Raises:
      ConfigError: a name is one of `TAKEN`.
    """
    named: dict[str, list[Array]] = {}
    for path, values in sorted(_by_path(left, METRICS).items()):
        if path[-1] in TAKEN:
            raise ConfigError(f"a module leaves a metric called {shown(path[-1])}, as the log's own is; rename it")
        named.setdefault(path[-1], []).append(values.astype(jnp.float32))
    return {name: functools.reduce(jnp.add, values) / len(values) for name, values in named.items()}


def _by_path(left: Mapping[str, Any], collection: str) -> dict[tuple[str, ...], Any]:
    """{path: array} of a collection, with the name last."""
    return traverse_util.flatten_dict(dict(left.get(collection, {})))
