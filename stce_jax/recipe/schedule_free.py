"""Schedule-free learning: an average of the weights takes the place of a decaying learning rate.

Source: Defazio et al. 2024, "The road less scheduled", arXiv 2405.15682. Three points take part: the base optimizer
moves z; x is the average of all z so far, weighted by the squares of the largest rate until then; gradients are taken
at y = beta x + (1 - beta) z. The result of training is x.

`optax.contrib.schedule_free` gives the caller y and recovers x from y and z. Here the caller holds x, and y is made for
the gradient alone: whatever reads a state or a checkpoint then has the weights to evaluate, and x has no rounding of
its way through y. The tests compare the two.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


class Averaging(NamedTuple):
    """A GradientTransformation whose gradients are not taken at the parameters that it updates.

    Attributes:
      init, update: as optax's; `params` are x.
      gradient_point: (params, state) -> the parameters to take the gradient at.
    """

    init: Callable[[Any], Any]
    update: Callable[..., tuple[Any, Any]]
    gradient_point: Callable[[Any, Any], Any]


class ScheduleFreeState(NamedTuple):
    """State of `schedule_free`: as many numbers as the base optimizer's, and z, one for each parameter."""

    steps: Int[Array, ""]
    largest_rate: Float[Array, ""]
    weight_sum: Float[Array, ""]
    base: Any
    z: Any


def schedule_free(
    base: optax.GradientTransformation, schedule: Callable[[Any], Any] | float, *, beta: float
) -> Averaging:
    """Averages what a base optimizer without momentum does.

    Args:
      base: its updates, learning rate and weight decay included, move z; it sees y as the parameters.
      schedule: the learning rate of `base`, without a decay.
      beta: share of x in y, 0 <= beta < 1; it takes the place of momentum.
    """

    def init(params: Any) -> ScheduleFreeState:
        zero = jnp.zeros((), jnp.float32)
        copy = jax.tree.map(jnp.copy, params)  # of its own: a step donates parameters and state
        return ScheduleFreeState(jnp.zeros((), jnp.int32), zero, zero, base.init(params), copy)

    def gradient_point(params: Any, state: ScheduleFreeState) -> Any:
        return jax.tree.map(lambda x, z: beta * x + (1.0 - beta) * z, params, state.z)

    def update(gradients: Any, state: ScheduleFreeState, params: Any) -> tuple[Any, ScheduleFreeState]:
        rate = jnp.asarray(schedule(state.steps) if callable(schedule) else schedule, jnp.float32)
        largest_rate = jnp.maximum(state.largest_rate, rate)
        weight_sum = state.weight_sum + largest_rate**2
        share = jnp.where(weight_sum > 0, largest_rate**2 / jnp.where(weight_sum > 0, weight_sum, 1.0), 0.0)
        changes, base_state = base.update(gradients, state.base, gradient_point(params, state))
        z = optax.apply_updates(state.z, changes)
        changes = jax.tree.map(lambda x, new: share * (new - x), params, z)
        return changes, ScheduleFreeState(state.steps + 1, largest_rate, weight_sum, base_state, z)

    return Averaging(init, update, gradient_point)
