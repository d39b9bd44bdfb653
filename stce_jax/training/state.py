"""The train state: everything that a step changes and a checkpoint must hold."""

import concurrent.futures
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
    return jax.eval_shape(_initializer(model, image_size), jax.eval_shape(lambda: jax.random.key(0)))


def begin_state(
    model: Body,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    image_size: int,
    with_ema: bool,
    mesh: Mesh,
) -> Callable[[], TrainState]:
    """Begins to make the state of step 0: in a run of one process a thread compiles the program that computes it.

    Args:
      model: called as model(images, train=False).
      optimizer: initialised with the parameters.
      seed: of the initial parameters.
      image_size: side of the images in pixels.
      with_ema: whether to keep a moving average.
      mesh: see `make_mesh`.

    Returns:
      A function, to be called once, that waits for the program and computes the state, each array created with its
      sharding: no device ever holds more than its part. Of several processes, all compile when they call it.
    """
    initializer = _initializer(model, image_size)

    def init(key: jax.Array) -> TrainState:
        return _begin(initializer(key), optimizer, with_ema)

    key = jax.random.key(seed)
    shardings = state_shardings(jax.eval_shape(init, key), mesh)
    options = jax_settings.options_to_run_once(mesh.devices.flat[0].platform)
    jitted = jax.jit(init, out_shardings=shardings, compiler_options=options)
    if processes.several():  # which compile in one order, and meet
        return lambda: processes.compile_together(jitted)(key)
    thread = concurrent.futures.ThreadPoolExecutor(max_workers=1)
    compiling = [thread.submit(jitted.lower(key).compile)]
    thread.shutdown(wait=False)
    return lambda: compiling.pop().result()(key)  # who keeps the function does not keep the program


def init_state(model: Body, optimizer: optax.GradientTransformation, **options: Any) -> TrainState:
    """The state of step 0; for the options see `begin_state`."""
    return begin_state(model, optimizer, **options)()


def abstract_state(
    model: Body, optimizer: optax.GradientTransformation, *, image_size: int, with_ema: bool
) -> TrainState:
    """Shapes and dtypes of what `init_state` makes, computing nothing."""
    begin = functools.partial(_begin, optimizer=optimizer, with_ema=with_ema)
    return jax.eval_shape(begin, abstract_variables(model, image_size))


def _initializer(model: Body, image_size: int) -> Callable[[jax.Array], dict[str, Any]]:
    """key -> the variables of a new model; jitted, so that one trace serves those who ask for shapes and for values."""
    module: Any = model
    try:
        return _known_initializer(module, image_size)
    except TypeError:  # an option of somebody's module has no hash
        return _new_initializer(model, image_size)


@functools.lru_cache(maxsize=64)
def _known_initializer(model: Body, image_size: int) -> Callable[[jax.Array], dict[str, Any]]:
    return _new_initializer(model, image_size)


def _new_initializer(model: Body, image_size: int) -> Callable[[jax.Array], dict[str, Any]]:
    @jax.jit
    def initialize(key: jax.Array) -> dict[str, Any]:
        variables = model.init(key, jnp.zeros((1, image_size, image_size, 3), jnp.float32), train=False)
        return {name: variables[name] for name in ("params", "batch_stats") if name in variables}

    return initialize


def _begin(variables: Any, optimizer: optax.GradientTransformation, with_ema: bool) -> TrainState:
    """The state of step 0 with these variables."""
    ema = jax.tree.map(jnp.copy, variables) if with_ema else None
    return TrainState(jnp.zeros((), jnp.int32), variables, optimizer.init(variables["params"]), ema)
