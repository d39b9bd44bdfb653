"""What a training step does to the state: an update, or nothing where its loss or gradient is not finite."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from stce_jax.platform.backends import by_backend
from stce_jax.recipe.averages import Decay
from stce_jax.recipe.optimizers import Optimizer
from stce_jax.recipe.parameters import Frozen, merge, split
from stce_jax.training.frozen import average_unless
from stce_jax.training.state import TrainState


def update_if(finite: Bool[Array, ""], update: Callable[[TrainState], TrainState], state: TrainState) -> TrainState:
    """update(state), or, if not `finite`, the state as it is.

    On CPUs in a branch: there, each array's new value takes the old one's place in one pass. Selected, XLA copies
    parameters and moments first, in four times the time. GPUs would have to ask the host for the branch.
    """

    def branch(state: TrainState) -> TrainState:
        return jax.lax.cond(finite, update, lambda state: state, state)

    def select(state: TrainState) -> TrainState:
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), update(state), state)

    return by_backend(state, cpu=branch, default=select)


def update(
    optimizer: Optimizer, gradients: Any, statistics: Any, ema_decay: Decay, frozen: Frozen | None, state: TrainState
) -> TrainState:
    """The state after an update with these gradients and BatchNorm statistics, its step unchanged."""
    params, rest = (state.variables["params"], None) if frozen is None else split(state.variables["params"], frozen)
    changes, optimizer_state = optimizer.update(gradients, state.optimizer, params)
    params = optax.apply_updates(params, changes)
    variables = {"params": params if rest is None else merge(params, rest), **statistics}
    ema = state.ema
    if ema is not None:
        decay = ema_decay(state.step) if callable(ema_decay) else ema_decay
        ema = average_unless(frozen, decay, ema, variables)
    return state.replace(variables=variables, optimizer=optimizer_state, ema=ema)
