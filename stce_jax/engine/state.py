"""The train state: everything that a step changes and a checkpoint must hold."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from stce_jax.engine.mesh import state_shardings


@struct.dataclass
class TrainState:
    """A pytree.

    Attributes:
      step: int32 scalar, updates made so far.
      variables: {"params": ..., "batch_stats": ...}; without BatchNorm there are no batch_stats.
      optimizer: the optax state.
      ema: exponential moving average of `variables`, or None.
    """

    step: jax.Array
    variables: Any
    optimizer: Any
    ema: Any


def abstract_variables(model, image_size):
    """Shapes and dtypes of a model's variables, computing nothing."""
    return jax.eval_shape(lambda: _init_variables(model, jax.random.key(0), image_size))


def init_state(model, optimizer, *, seed, image_size, with_ema, mesh):
    """Makes the state of step 0, each array born with its sharding: no device ever holds more than its part.

    Args:
      model: linen module, called as model(images, train=False).
      optimizer: optax GradientTransformation.
      seed: of the initial parameters.
      image_size: side of the images in pixels.
      with_ema: whether to keep a moving average.
      mesh: see `make_mesh`.
    """

    def init(key):
        variables = _init_variables(model, key, image_size)
        ema = jax.tree.map(jnp.copy, variables) if with_ema else None
        return TrainState(jnp.zeros((), jnp.int32), variables, optimizer.init(variables["params"]), ema)

    key = jax.random.key(seed)
    shardings = state_shardings(jax.eval_shape(init, key), mesh)
    return jax.jit(init, out_shardings=shardings)(key)


def _init_variables(model, key, image_size):
    variables = model.init(key, jnp.zeros((1, image_size, image_size, 3), jnp.float32), train=False)
    return {name: variables[name] for name in ("params", "batch_stats") if name in variables}
