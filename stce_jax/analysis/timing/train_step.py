"""The step of `stce train` by itself, for what times it: the batch lies on the device, nothing is loaded."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from stce_jax.models.bodies import Body
from stce_jax.recipe.optimizers import make_optimizer
from stce_jax.training.state import TrainState
from stce_jax.training.step import make_train_step

WEIGHT_DECAY = 0.05


def timed_train_step(
    model: Body,
    variables: Mapping[str, Any],
    augment: Callable[..., Any],
    mesh: jax.sharding.Mesh,
    *,
    learning_rate: float,
    accumulate: int = 1,
) -> tuple[Any, TrainState]:
    """(jitted step, state of step 0), see `make_train_step`: AdamW, neither clipping nor a moving average.

    Args:
      model: a body.
      variables: what the state begins with; the step takes their memory if they lie on a device.
      augment, mesh, accumulate: see `make_train_step`.
      learning_rate: of every step.
    """
    optimizer = make_optimizer(
        learning_rate, weight_decay=WEIGHT_DECAY, beta1=0.9, beta2=0.999, epsilon=1e-8, clip_norm=0.0
    )
    started = jax.jit(optimizer.init)(variables["params"])  # in one program
    state = TrainState(jnp.zeros((), jnp.int32), variables, started, None)
    step = make_train_step(model, optimizer, augment, ema_decay=0.0, state=state, mesh=mesh, accumulate=accumulate)
    return step, state
