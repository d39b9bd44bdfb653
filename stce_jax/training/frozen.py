"""Training with frozen parts: they have no gradient, no optimizer state, and stay as they are to the bit.

A frozen BatchNorm normalises by its running statistics in training, too, as Keras' frozen layers do, and keeps them:
what is trained behind it then sees in training what it sees in evaluation.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import linen as nn

from stce_jax.models.batch_norms import BatchNorm
from stce_jax.recipe.optimizers import Optimizer
from stce_jax.recipe.parameters import Frozen, merge, split
from stce_jax.recipe.schedule_free import Averaging


def train_only(optimizer: Optimizer, frozen: Frozen | None) -> Optimizer:
    """An optimizer whose state, made of all parameters, is of those that are not frozen."""
    if frozen is None:
        return optimizer

    def init(params: Any) -> Any:
        return optimizer.init(split(params, frozen)[0])

    if isinstance(optimizer, Averaging):
        return optimizer._replace(init=init)
    return optax.GradientTransformation(init, optimizer.update)


def apply_with(apply: Callable[..., Any], rest: Any, frozen: Frozen) -> Callable[..., Any]:
    """A model's `apply` for variables whose "params" are the trained ones alone.

    Args:
      apply: for all variables.
      rest: the frozen parameters, see `parameters.split`.
      frozen: see `parameters.is_frozen`.
    """

    def apply_trained(variables: Any, *inputs: Any, **options: Any) -> Any:
        with nn.intercept_methods(functools.partial(_keep_still, frozen)):
            return apply({**variables, "params": merge(variables["params"], rest)}, *inputs, **options)

    return apply_trained


def average_unless(frozen: Frozen | None, decay: Any, mean: Any, new: Any) -> Any:
    """decay * mean + (1 - decay) * new of variables, but for frozen ones, which rounding must not move."""

    def average(path: Any, mean: jax.Array, new: jax.Array) -> jax.Array:
        names = tuple(key.key for key in path)[1:]  # without the collection's
        return mean if frozen is not None and frozen(names) else decay * mean + (1.0 - decay) * new

    return jax.tree_util.tree_map_with_path(average, mean, new)


def _keep_still(frozen: Frozen, method: Callable[..., Any], inputs: Any, options: dict[str, Any], context: Any) -> Any:
    """Has a frozen BatchNorm use its running statistics; an interceptor of flax."""
    module = context.module
    if context.method_name != "__call__" or not frozen((*module.path, "mean")):  # where its statistics are
        return method(*inputs, **options)
    if isinstance(module, BatchNorm):
        return method(inputs[0], train=False)
    if isinstance(module, nn.BatchNorm) and module.use_running_average is None:
        return method(*inputs, **{**options, "use_running_average": True})
    if isinstance(module, nn.BatchNorm):  # given when the module was made: a call may not give it again
        object.__setattr__(module, "use_running_average", True)
    return method(*inputs, **options)
