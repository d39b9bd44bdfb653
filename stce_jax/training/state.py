"""The train state: everything that a step changes and a checkpoint must hold."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Int

from stce_jax.models.bodies import Body
from stce_jax.platform import jax_settings
from stce_jax.processes import peers as processes
from stce_jax.training.mesh import state_shardings


class TrainState(struct.PyTreeNode):
    """A pytree.

    Attributes:
      step: steps made so far, skipped ones included: the position in the stream of images.
      variables: {"params": ..., "batch_stats": ...}; without BatchNorm there are no batch_stats.
      optimizer: the optax state.
      ema: exponential moving average of `variables`, or None.
    """

    step: Int[Array, ""]
    variables: Any
    optimizer: Any
    ema: Any


def abstract_variables(model: Body, image_size: int) -> Any:
    """Shapes and dtypes of a model's variables, computing nothing. Equal models are traced once."""
    settings: Any = jax.config
    key: Any = model, image_size, settings.jax_enable_x64
    try:
        shapes = _known_shapes(*key)
    except TypeError:  # an option of somebody's module has no hash
        shapes = _shapes(model, image_size)
    return jax.tree.map(lambda leaf: leaf, shapes)  # dicts of the caller's own


def init_state(
    model: Body,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    image_size: int,
    with_ema: bool,
    mesh: Mesh,
) -> TrainState:
    """Makes the state of step 0, each array created with its sharding: no device ever holds more than its part.

    Args:
      model: called as model(images, train=False).
      optimizer: initialised with the parameters.
      seed: of the initial parameters.
      image_size: side of the images in pixels.
      with_ema: whether to keep a moving average.
      mesh: see `make_mesh`.
    """
    init = _init_function(model, optimizer, image_size, with_ema)
    key = jax.random.key(seed)
    shardings = state_shardings(jax.eval_shape(init, key), mesh)
    options = jax_settings.options_to_run_once(mesh.devices.flat[0].platform)
    return processes.compile_together(jax.jit(init, out_shardings=shardings, compiler_options=options))(key)


def abstract_state(
    model: Body, optimizer: optax.GradientTransformation, *, image_size: int, with_ema: bool
) -> TrainState:
    """Shapes and dtypes of what `init_state` makes, computing nothing."""
    begin = functools.partial(_begin, optimizer=optimizer, with_ema=with_ema)
    return jax.eval_shape(begin, abstract_variables(model, image_size))


def _init_function(
    model: Body, optimizer: optax.GradientTransformation, image_size: int, with_ema: bool
) -> Callable[[jax.Array], TrainState]:
    def init(key: jax.Array) -> TrainState:
        return _begin(_init_variables(model, key, image_size), optimizer, with_ema)

    return init


def _begin(variables: Any, optimizer: optax.GradientTransformation, with_ema: bool) -> TrainState:
    """The state of step 0 with these variables."""
    ema = jax.tree.map(jnp.copy, variables) if with_ema else None
    return TrainState(jnp.zeros((), jnp.int32), variables, optimizer.init(variables["params"]), ema)


def _shapes(model: Body, image_size: int) -> Any:
    return jax.eval_shape(lambda: _init_variables(model, jax.random.key(0), image_size))


@functools.lru_cache(maxsize=64)
def _known_shapes(model: Body, image_size: int, double_precision: bool) -> Any:
    """`_shapes`, remembered; 64-bit types are JAX's setting, which decides what the dtypes are."""
    del double_precision
    return _shapes(model, image_size)


def _init_variables(model: Body, key: jax.Array, image_size: int) -> dict[str, Any]:
    variables = model.init(key, jnp.zeros((1, image_size, image_size, 3), jnp.float32), train=False)
    return {name: variables[name] for name in ("params", "batch_stats") if name in variables}
