"""Top-K: the image tokens that the class token attends to most are kept, the others dropped.

Source: the baseline of Haurum et al. 2023 ("Which Tokens to Use?", arXiv 2308.04657), which is EViT without fusion.

Shape letters: B batch, N tokens, n of them the image's, M of them kept, A attention heads, E width of a head.
"""

import math
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from stce_jax.models.ops.attention import attention_weights
from stce_jax.models.reductions import reduction
from stce_jax.models.tokens import Tokens


class TopK(nn.Module):
    """Keeps the M image tokens with the largest class attention, in descending order.

    Attributes:
      blocks: those that reduce; DeiT-S of 12 blocks reduces in 3, 6 and 9.
      keep_rate: see `reduction.kept_counts`.
      stage: set by the body.
    """

    blocks: tuple[int, ...] | None = (3, 6, 9)
    keep_rate: reduction.KeepRate = 0.7
    stage: int = 0

    needs: ClassVar[tuple[str, ...]] = ("query", "key")
    needs_class_token: ClassVar[bool] = True
    keeps_places: ClassVar[bool] = True

    def check(self) -> None:
        reduction.check_keep_rate(self.keep_rate, self.blocks)

    def counts(self, grid: tuple[int, int], stages: int) -> list[int]:
        return reduction.kept_counts(self.keep_rate, math.prod(grid), stages)

    def __call__(self, tokens: Tokens, given: Mapping[str, Float[Array, "..."]], *, train: bool) -> Tokens:
        del train  # the same in training and inference
        scores = class_attention(given["query"], given["key"], tokens)
        assert tokens.initial_grid is not None
        count = self.counts(tokens.initial_grid, self.stage + 1)[-1]
        if count >= scores.shape[1]:
            return tokens
        kept = most_attended(scores, count)
        reduction.sow_assignment(self, reduction.assignment_of(kept, scores.shape[1]))
        return keep(tokens, kept)


def class_attention(
    query: Float[Array, "B N A E"], key: Float[Array, "B N A E"], tokens: Tokens
) -> Float[Array, "B n"]:
    """The class token's attention to each image token, averaged over heads; float32 at least."""
    weights = attention_weights(query[:, :1], key, mask=tokens.mask)  # [B, A, 1, N]
    return weights.mean(axis=1)[:, 0, tokens.leading :]


def most_attended(scores: Float[Array, "B n"], count: int) -> Int[Array, "B M"]:
    """The places of the `count` largest scores, in descending order; of equal ones the first."""
    return jax.lax.top_k(jax.lax.stop_gradient(scores), count)[1]


def keep(tokens: Tokens, kept: Int[Array, "B M"]) -> Tokens:
    """The leading tokens and the image tokens at these places."""
    leading = jnp.broadcast_to(jnp.arange(tokens.leading), (kept.shape[0], tokens.leading))
    return tokens.select(jnp.concatenate([leading, kept + tokens.leading], axis=1))
