"""The one value that flows through a model: embeddings give it, blocks pass it on, reductions shrink it, heads read it.

Shape letters: B batch, N tokens, D model width, h w grid.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float

from stce_jax.errors import ConfigError


@struct.dataclass
class Tokens:
    """Tokens and what blocks, reductions and heads must know of them. A pytree; grid and leading are static.

    Attributes:
      values: the tokens, leading ones first, then the image's, row by row of the grid.
      sizes: how many original tokens each stands for; None: one each.
      mask: which tokens are real; None: all. The others are seen by none and count nowhere.
      grid: (h, w) in which the image's tokens lie; None once they lie in no grid.
      leading: number of tokens at the front that are no image tokens (a class token, registers).
      proportional: whether attention counts a token as often as `sizes` says.
      policy: how far each token is live, in training with decisions that a gradient flows through: 1 live, 0 dropped;
        None: all are. Others attend to a token as far as it is live, see `ops.attention.policy_attention`.
      initial_grid: (h, w) in which the image tokens lay before any reduction; None: outside a body that takes them.
      places: (column, row) of each token in the grid, (0, 0) for leading ones and those without a place; the first axis
        may be 1: alike for all images. Only within blocks with rotary positions; else None.
      registers: how many of the leading tokens, the last of them, no head reads.
    """

    values: Float[Array, "B N D"]
    sizes: Float[Array, "B N"] | None = None
    mask: Bool[Array, "B N"] | None = None
    grid: tuple[int, int] | None = struct.field(pytree_node=False, default=None)
    leading: int = struct.field(pytree_node=False, default=0)
    proportional: bool = struct.field(pytree_node=False, default=True)
    policy: Float[Array, "B N"] | None = None
    initial_grid: tuple[int, int] | None = struct.field(pytree_node=False, default=None)
    places: Float[Array, "#B N 2"] | None = None
    registers: int = struct.field(pytree_node=False, default=0)

    def __getattr__(self, name: str) -> Any:
        """Whatever an array has (shape, dtype, mean, ...) is that of the values: tokens may stand for an array."""
        if name.startswith("__") or name == "values":
            raise AttributeError(name)
        return getattr(self.values, name)

    def __getitem__(self, index: Any) -> jax.Array:
        """Indexes the values."""
        return self.values[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The values as a NumPy array, so that tokens may stand where an array is expected."""
        return np.array(self.values, dtype=dtype, copy=copy)

    def __jax_array__(self) -> jax.Array:
        """The values, where jax.numpy expects an array."""
        return jnp.asarray(self.values)

    def with_values(self, values: Float[Array, "B N D"]) -> Tokens:
        """The same tokens with other values."""
        return dataclasses.replace(self, values=values)

    @property
    def initial(self) -> int:
        """How many image tokens there were before any reduction, which keep rates are shares of."""
        assert self.initial_grid is not None, "tokens of no body have no initial grid; give one"
        return math.prod(self.initial_grid)

    def image_values(self) -> Float[Array, "B n D"]:
        """The image's tokens, without the leading ones."""
        return self.values[:, self.leading :]

    def prepend(self, values: Float[Array, "B n D"]) -> Tokens:
        """Puts leading tokens in front; each stands for one, is real and has no place."""
        batch, count, _ = values.shape
        sizes, mask, policy = self.sizes, self.mask, self.policy
        if sizes is not None:
            sizes = jnp.concatenate([jnp.ones((batch, count), sizes.dtype), sizes], axis=1)  # [B, n + N]
        if mask is not None:
            mask = jnp.concatenate([jnp.ones((batch, count), bool), mask], axis=1)  # [B, n + N]
        if policy is not None:
            policy = jnp.concatenate([jnp.ones((batch, count), policy.dtype), policy], axis=1)  # [B, n + N]
        joined = jnp.concatenate([values, self.values], axis=1)  # [B, n + N, D]
        parts: dict[str, Any] = {"values": joined, "sizes": sizes, "mask": mask, "policy": policy}
        if self.places is not None:
            parts["places"] = jnp.pad(self.places, ((0, 0), (count, 0), (0, 0)))  # [#B, n + N, 2]
        return dataclasses.replace(self, **parts, leading=self.leading + count)

    def first(self, count: int) -> Tokens:
        """The first `count` tokens alone; they lie in no grid."""
        registers = max(0, self.registers - max(0, self.leading - count))
        return dataclasses.replace(self.select(slice(count)), leading=min(self.leading, count), registers=registers)

    def select(self, places: Any) -> Tokens:
        """The tokens at these places of N, all that is known of each with them; they lie in no grid.

        Args:
          places: an index of the second axis alike for all images, or int [B, M], for each image its own.
        """

        def chosen(part: Any) -> Any:
            if part is None:
                return None
            if getattr(places, "ndim", 1) < 2:
                return part[:, places]
            return jnp.take_along_axis(part, places.reshape(*places.shape, *[1] * (part.ndim - 2)), axis=1)

        parts = {name: chosen(getattr(self, name)) for name in ("values", "sizes", "mask", "policy", "places")}
        return dataclasses.replace(self, **parts, grid=None)

    def pooled_mean(self) -> Float[Array, "B D"]:
        """Mean of the image's tokens, weighted by their sizes and policy; those that are not real count nothing."""
        values = self.image_values()
        if self.sizes is None and self.mask is None and self.policy is None:
            return values.mean(axis=1)
        weights = jnp.ones(self.values.shape[:2], jnp.float32) if self.sizes is None else self.sizes
        weights = weights if self.mask is None else jnp.where(self.mask, weights, 0.0)
        weights = weights[:, self.leading :, None].astype(jnp.float32)  # [B, N, 1]
        values = values if self.mask is None else jnp.where(weights > 0, values, 0.0)  # what is masked may be anything
        if self.policy is None:
            return ((values * weights).sum(axis=1) / weights.sum(axis=1)).astype(values.dtype)
        weights = weights * self.policy[:, self.leading :, None]
        total = jnp.maximum(weights.sum(axis=1), 0.5)  # 1 at least, but 0 where an image's tokens are all dropped
        return ((values * weights).sum(axis=1) / total).astype(values.dtype)


def check_tokens(source: str, tokens: Any, shape: tuple[int, int | None, int], *, leading: int) -> None:
    """Raises ConfigError if a module gives tokens that the model cannot use.

    Args:
      source: what gave them, "embedding" or "reduction".
      tokens: what it gave.
      shape: what [B, N, D] must be; N None: any number.
      leading: how many leading tokens there must be.
    """
    if not isinstance(tokens, Tokens):
        raise ConfigError(f"the {source} returns {type(tokens).__name__}; it must return Tokens")
    batch, count, width = shape
    expected = (batch, tokens.values.shape[1] if count is None else count, width)
    if tuple(tokens.values.shape) != expected:
        raise ConfigError(f"the {source} gives tokens {tuple(tokens.values.shape)}; the model needs {expected}")
    if tokens.leading != leading:
        raise ConfigError(f"the {source} gives {tokens.leading} leading tokens; the model needs {leading}")
    if tokens.grid is not None and tokens.grid[0] * tokens.grid[1] != expected[1] - leading:
        rows, columns = tokens.grid
        raise ConfigError(
            f"the {source} gives {expected[1] - leading} tokens of the image in a grid of {rows}x{columns}; "
            "set the grid that they lie in, or None"
        )
