"""Sinkhorn: new tokens, each a sum of image tokens by an optimal transport plan from learned centres to them.

Source: the comparison study of Haurum et al. 2023 (arXiv 2308.04657) and its published code.

Shape letters: B batch, n image tokens, M new ones, D model width.
"""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from stce_jax.errors import ConfigError, check_range, check_whole
from stce_jax.models.ops.precision import widened
from stce_jax.models.reductions import new_tokens, reduction
from stce_jax.models.tokens import Tokens

SMALLEST_EPSILON, LARGEST_EPSILON, MOST_ROUNDS = 1e-3, 1e3, 1000


class Sinkhorn(nn.Module):
    """Before its blocks, makes M new tokens of the image's n, which are normalised to length 1 first; M D parameters.

    The gradient by the centres is that by the normalised ones: the published code normalises the parameter itself,
    before each use and outside of the gradient. Here the parameter stays as the optimizer leaves it, so that a run's
    updates are relative to its length, which is 1 at first.

    Attributes:
      blocks: those before which it acts; DeiT-S of 12 blocks reduces before 3, 6 and 9.
      keep_rate: M as a share of the first tokens, see `reduction.kept_counts`.
      initial_tokens: how many image tokens `keep_rate` is a share of; None: as many as images have of the size that the
        model is made for. A number lets a model for larger images begin with the weights of one for smaller ones.
      epsilon: of the entropy in the plan: products of unit vectors are divided by it.
      rounds: how often the plan's rows and columns are brought to their sums in turn.
      stage: set by the body.
    """

    blocks: tuple[int, ...] | None = (3, 6, 9)
    keep_rate: reduction.KeepRate = 0.7
    initial_tokens: int | None = None
    epsilon: float = 1.0
    rounds: int = 3
    stage: int = 0

    needs: ClassVar[tuple[str, ...]] = ()
    needs_class_token: ClassVar[bool] = False
    before: ClassVar[bool] = True

    def check(self) -> None:
        new_tokens.check(self)
        check_range("model option epsilon", self.epsilon, SMALLEST_EPSILON, LARGEST_EPSILON)
        check_whole("model option rounds", self.rounds, 1, MOST_ROUNDS)

    def counts(self, grid: tuple[int, int], stages: int) -> list[int]:
        return new_tokens.counts(self, grid, stages)

    @nn.compact
    def __call__(self, tokens: Tokens, given: Mapping[str, Float[Array, "..."]], *, train: bool) -> Tokens:
        del given, train  # the same in training and inference
        if tokens.mask is not None:
            raise ConfigError("sinkhorn shares out all tokens alike and takes no masked ones; take another reduction")
        values = tokens.image_values()
        count = new_tokens.made_count(self, tokens, "centres", axis=0)
        centres = self.param("centres", unit_vectors, (count, values.shape[-1]), jnp.float32)
        unit = widened(values)
        unit = unit / jnp.linalg.norm(unit, axis=-1, keepdims=True)
        length = jnp.linalg.norm(centres, axis=-1, keepdims=True)
        centres = centres + jax.lax.stop_gradient(centres / length - centres)
        plan = transport_plan(jnp.einsum("md,bnd->bmn", centres, unit) / self.epsilon, self.rounds)
        weights = plan * sum(plan.shape[1:])
        return new_tokens.replace_image_tokens(self, tokens, weights, unit)


def transport_plan(scores: Float[Array, "B M n"], rounds: int) -> Float[Array, "B M n"]:
    """Sinkhorn's algorithm, in logarithms: exp(scores) with rows and columns scaled in turn, rows first.

    Rows and columns alike are brought to 1 / (M + n) each, as the published code does. So they cannot both be, for the
    sums of all differ; the columns are after the last round.

    Args:
      scores: of each pair, larger for nearer ones.
      rounds: how often both are scaled, 1 or more.
    """
    target = -jnp.log(jnp.asarray(sum(scores.shape[1:]), scores.dtype))
    rows, columns = jnp.zeros_like(scores[:, :, :1]), jnp.zeros_like(scores[:, :1])
    for _ in range(rounds):
        rows = target - jax.nn.logsumexp(scores + columns, axis=2, keepdims=True)
        columns = target - jax.nn.logsumexp(scores + rows, axis=1, keepdims=True)
    return jnp.exp(scores + rows + columns)


def unit_vectors(key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Float[Array, "M D"]:
    """Initialises with random vectors of length 1."""
    vectors = jax.random.normal(key, shape, dtype)
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
