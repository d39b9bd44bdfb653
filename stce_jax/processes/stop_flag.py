"""A stop request carried by the devices: every process learns of it at the same step.

Each process adds a flag to its share of a batch, and the step's program takes the flags' maximum over all devices. A
program of its own for that would not do: on CPUs, programs that run side by side in several processes may each wait for
another's collectives.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

FLAG = "stop_requested"


def flagged(batches: Iterable[dict[str, np.ndarray]], stop_requested: Callable[[], Any]) -> Iterator[dict[str, Any]]:
    """Adds to each batch whether this process was asked to stop, as FLAG int32 [B / processes].

    Args:
      batches: this process's shares, each with "label" [B / processes].
      stop_requested: called when a batch is taken.
    """
    for batch in batches:
        yield {**batch, FLAG: np.full(len(batch["label"]), bool(stop_requested()), np.int32)}


def carries_flag(step: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a step's batch carry the flag; to be jitted together with the step, which does not see it.

    Args:
      step: (carry, batch, *more) -> a dict of metrics, or a tuple whose last item is one.

    Returns:
      The same function for a batch with FLAG, which adds to the metrics FLAG, float32: 1 if any process was asked to
      stop, else 0. Without FLAG in the batch, nothing is added. Its keyword argument `after`, the FLAG of an earlier
      step, makes a step that depends on no other wait for that one, and keeps a request that was made then.
    """

    def with_flag(carry: Any, batch: dict[str, Any], *more: Any, after: Any = None) -> Any:
        inputs = {name: rows for name, rows in batch.items() if name != FLAG}
        outputs = step(carry, inputs, *more)
        if FLAG not in batch:
            return outputs
        flag = batch[FLAG].max().astype(jnp.float32)
        flag = flag if after is None else jnp.maximum(after, flag)
        if isinstance(outputs, tuple):
            return *outputs[:-1], {**outputs[-1], FLAG: flag}
        return {**outputs, FLAG: flag}

    with_flag.__name__ = step.__name__  # names the compiled program
    return with_flag
