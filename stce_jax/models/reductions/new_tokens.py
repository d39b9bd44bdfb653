"""What the reductions share that make new tokens, each of them a weighted sum of all image tokens.

Their parameters depend on the number of tokens that they make. It follows from the image size that a model is made for,
and stays what it is at any other.

Shape letters: B batch, n image tokens, M new ones, D model width.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from stce_jax.errors import check_whole
from stce_jax.models.ops.precision import wide_product, widened
from stce_jax.models.reductions import reduction
from stce_jax.models.tokens import Tokens

MOST_TOKENS = 2**20


def check(module: Any) -> None:
    """Raises ConfigError unless `keep_rate` and `initial_tokens` of a module can work."""
    reduction.check_keep_rate(module.keep_rate, module.blocks)
    if module.initial_tokens is not None:
        check_whole("model option initial_tokens", module.initial_tokens, 1, MOST_TOKENS)


def counts(module: Any, grid: tuple[int, int], stages: int) -> list[int]:
    """How many tokens each stage makes in a model made for images whose tokens lie in a grid (h, w) at first."""
    return reduction.kept_counts(module.keep_rate, module.initial_tokens or math.prod(grid), stages)


def made_count(module: Any, tokens: Tokens, *path: str, axis: int) -> int:
    """M of a module that is being called: of its parameters if they are there; while they are made, of the tokens.

    Args:
      module: bound; M is the size of an axis of one of its parameters.
      tokens: those it is called with.
      path: of that parameter within the module.
      axis: that axis.
    """
    if module.has_variable("params", path[0]):
        parameter = module.get_variable("params", path[0])
        for name in path[1:]:
            parameter = parameter[name]
        return parameter.shape[axis]
    assert tokens.initial_grid is not None
    return counts(module, tokens.initial_grid, module.stage + 1)[-1]


def shares_of_tokens(logits: Float[Array, "B M n"], tokens: Tokens) -> Float[Array, "B M n"]:
    """Softmax over the image tokens. Those that are not real have no share, larger ones count as often as they are."""
    logits = widened(logits)
    if tokens.sizes is not None:
        logits = logits + jnp.log(tokens.sizes)[:, None, tokens.leading :]
    if tokens.mask is None:
        return jax.nn.softmax(logits)
    return jax.nn.softmax(logits, where=tokens.mask[:, None, tokens.leading :])


def replace_image_tokens(
    module: nn.Module, tokens: Tokens, weights: Float[Array, "B M n"], values: Float[Array, "B n D"]
) -> Tokens:
    """The leading tokens, then `weights` times `values`; sows where each image token went, see `largest_share`.

    Every new token counts as one, is real, and lies in no grid.
    """
    reduction.sow_assignment(module, largest_share(weights, tokens))
    made = wide_product("bmn,bnd->bmd", weights.astype(values.dtype), values)
    joined = jnp.concatenate([tokens.values[:, : tokens.leading], made.astype(tokens.values.dtype)], axis=1)
    return dataclasses.replace(tokens, values=joined, sizes=None, mask=None, policy=None, grid=None)


def largest_share(weights: Float[Array, "B M n"], tokens: Tokens) -> Int[Array, "B n"]:
    """The new token that takes the largest share of each image token; of equal ones the first; -1 of no real one."""
    assignment = weights.argmax(axis=1)
    return assignment if tokens.mask is None else jnp.where(tokens.mask[:, tokens.leading :], assignment, -1)
