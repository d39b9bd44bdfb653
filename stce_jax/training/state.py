"""The train state: everything that a step changes and a checkpoint must hold."""

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct, traverse_util

from stce_jax.training.mesh import state_shardings


@struct.dataclass
class TrainState:
    """A pytree.

    Attributes:
      step: int32 scalar, steps made so far, those that were skipped included: the position in the stream of images.
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
    init = _init_function(model, optimizer, image_size, with_ema)
    key = jax.random.key(seed)
    # It runs once. On CPUs, LLVM's best would take twice as long to make the same numbers.
    options = {"xla_backend_optimization_level": 1} if mesh.devices.flat[0].platform == "cpu" else None
    shardings = state_shardings(jax.eval_shape(init, key), mesh)
    return jax.jit(init, out_shardings=shardings, compiler_options=options)(key)


def abstract_state(model, optimizer, *, image_size, with_ema):
    """Shapes and dtypes of what `init_state` makes, computing nothing."""
    return jax.eval_shape(_init_function(model, optimizer, image_size, with_ema), jax.random.key(0))


def _init_function(model, optimizer, image_size, with_ema):
    def init(key):
        variables = _init_variables(model, key, image_size)
        ema = jax.tree.map(jnp.copy, variables) if with_ema else None
        return TrainState(jnp.zeros((), jnp.int32), variables, optimizer.init(variables["params"]), ema)

    return init


def first_mismatch(expected, found):
    """One line on the first array that two trees do not agree on, or None if every shape agrees.

    First by the order of blocks and modules, parameters before statistics; what is missing or differs comes before
    what is there in excess.

    Args:
      expected: what the model wants: nested dicts, or one flat dict with paths such as "params/norm/scale"; its leaves
        are shapes, or anything that has a `shape`.
      found: likewise, of what was read.
    """
    expected, found = (traverse_util.flatten_dict(tree, sep="/") for tree in (expected, found))
    expected, found = (
        {path: tuple(getattr(leaf, "shape", leaf)) for path, leaf in tree.items()} for tree in (expected, found)
    )
    for path in sorted(expected, key=_place):
        if path not in found:
            return f"{path} is not in it, the model wants {expected[path]}"
        if found[path] != expected[path]:
            return f"{path} is {found[path]} in it, the model wants {expected[path]}"
    for path in sorted(found.keys() - expected.keys(), key=_place):
        return f"{path} is {found[path]} in it, the model has none"
    return None


def _place(path):
    """Sorts blocks_2 before blocks_10."""
    words = [int(word) if word.isdecimal() else word for word in re.split(r"(\d+)", path)]
    return not path.startswith("params/"), words


def _init_variables(model, key, image_size):
    variables = model.init(key, jnp.zeros((1, image_size, image_size, 3), jnp.float32), train=False)
    return {name: variables[name] for name in ("params", "batch_stats") if name in variables}
