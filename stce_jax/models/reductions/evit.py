"""EViT: the image tokens that the class token attends to least are fused into one.

Source: Liang et al., ICLR 2022 (arXiv 2202.07800), and its published code.

Shape letters: B batch, N tokens, n of them the image's, M of them kept, D model width.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, Self

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from stce_jax.errors import ConfigError, check_choice, check_range, shown
from stce_jax.models.reductions import reduction
from stce_jax.models.reductions.topk import class_attention, keep, most_attended
from stce_jax.models.tokens import Tokens

COUNTINGS = ("current", "initial")
MOST_PROGRAMS = 8  # that a schedule compiles: the values that its keep rate takes
LONGEST = 1e6  # epochs


class EViT(nn.Module):
    """Keeps the image tokens with the largest class attention, and fuses the others into one more token.

    The fused token is the sum of those that are dropped, weighted by their class attention, which is not normalised.
    From then on it is an image token as any other. Where all tokens are kept, there is none.

    Attributes:
      blocks: those that reduce; DeiT-S of 12 blocks reduces in 3, 6 and 9.
      keep_rate: r, or a rate for each of `blocks`.
      counting: what r is a share of. "current": of the n tokens that enter a block, fused ones included, it keeps
        ceil(r n), as EViT's code. "initial": see `reduction.kept_counts`, the comparison study's; beside the fused one.
      fuse: whether there is a fused token.
      shrink_start_epoch, shrink_epochs: training keeps all tokens until the first, and then shrinks the keep rate along
        a cosine for that many epochs, see `scheduled`; 0 epochs: r from the start. EViT trained with 10 and 100.
      stage: set by the body.
    """

    blocks: tuple[int, ...] | None = (3, 6, 9)
    keep_rate: reduction.KeepRate = 0.7
    counting: str = "current"
    fuse: bool = True
    shrink_start_epoch: float = 0.0
    shrink_epochs: float = 0.0
    stage: int = 0

    needs: ClassVar[tuple[str, ...]] = ("query", "key")
    needs_class_token: ClassVar[bool] = True
    keeps_places: ClassVar[bool] = True

    def check(self) -> None:
        reduction.check_keep_rate(self.keep_rate, self.blocks)
        check_choice("model option counting", self.counting, COUNTINGS)
        for option in ("shrink_start_epoch", "shrink_epochs"):
            check_range(f"model option {option}", getattr(self, option), 0, LONGEST)

    def counts(self, grid: tuple[int, int], stages: int) -> list[int]:
        initial = math.prod(grid)
        counts, count = [], initial
        for stage in range(stages):
            kept = self.kept(count, initial, stage)
            count = kept + (self.fuse and kept < count)
            counts.append(count)
        return counts

    def at_epoch(self, epoch: float) -> Self:
        """The module as it trains at an epoch of the run; there are at most `MOST_PROGRAMS` of them."""
        if not self.shrink_epochs:
            return self
        share = (epoch - self.shrink_start_epoch) / self.shrink_epochs
        step = round(_cosine(share) * (MOST_PROGRAMS - 1)) / (MOST_PROGRAMS - 1)  # 1 at first, 0 at the end
        rates = tuple(rate + (1.0 - rate) * step for rate in reduction.several(self.keep_rate))
        return self.clone(keep_rate=rates, shrink_epochs=0.0, shrink_start_epoch=0.0)

    def __call__(self, tokens: Tokens, given: Mapping[str, Float[Array, "..."]], *, train: bool) -> Tokens:
        del train  # the same in training and inference
        scores = class_attention(given["query"], given["key"], tokens)
        count = self.kept(scores.shape[1], tokens.initial, self.stage)
        if count == scores.shape[1]:
            return tokens
        kept = most_attended(scores, count)
        assignment = reduction.assignment_of(kept, scores.shape[1])
        reduction.sow_assignment(self, jnp.where(assignment < 0, count, assignment) if self.fuse else assignment)
        return keep_and_fuse(tokens, scores, kept) if self.fuse else keep(tokens, kept)

    def kept(self, count: int, initial: int, stage: int) -> int:
        """How many of `count` image tokens a stage keeps, without the fused one."""
        if self.counting == "initial":
            return min(count, reduction.kept_counts(self.keep_rate, initial, stage + 1)[-1])
        rate = reduction.rates(self.keep_rate, stage + 1)[stage]
        kept = math.ceil(rate * count)
        if kept < 1:
            raise ConfigError(f"keep_rate {shown(rate)} leaves none of {count} tokens; give a larger one")
        return kept


def keep_and_fuse(tokens: Tokens, scores: Float[Array, "B n"], kept: Int[Array, "B M"]) -> Tokens:
    """The leading tokens, the image tokens at the places `kept`, and the sum of the others weighted by their scores.

    Gradients flow through the values and, in the sum, through the scores.
    """
    dropped = reduction.assignment_of(kept, scores.shape[1]) < 0  # [B, n]
    values = tokens.image_values()
    weights = jnp.where(dropped, scores, 0.0)  # not normalised, as in EViT's equation and code
    fused = jnp.einsum("bn,bnd->bd", weights, values.astype(weights.dtype)).astype(values.dtype)
    reduced = keep(tokens, kept)
    values, sizes, mask = jnp.concatenate([reduced.values, fused[:, None]], axis=1), reduced.sizes, reduced.mask
    if tokens.sizes is not None and sizes is not None:
        size = jnp.where(dropped, tokens.sizes[:, tokens.leading :], 0.0).sum(axis=1, keepdims=True)
        sizes = jnp.concatenate([sizes, size], axis=1)
    if tokens.mask is not None and mask is not None:
        real = (dropped & tokens.mask[:, tokens.leading :]).any(axis=1, keepdims=True)
        mask = jnp.concatenate([mask, real], axis=1)
    places = reduced.places
    if places is not None:  # the fused token stands for many places, and has none, as the class token
        places = jnp.pad(places, ((0, 0), (0, 1), (0, 0)))
    return dataclasses.replace(reduced, values=values, sizes=sizes, mask=mask, places=places)


def scheduled(epoch: float, keep_rate: float, start: float, epochs: float) -> float:
    """EViT's keep rate in training: 1 until `start`, along a cosine down to `keep_rate` for `epochs`, then that."""
    return keep_rate + (1.0 - keep_rate) * _cosine((epoch - start) / epochs)


def _cosine(share: float) -> float:
    """From 1 at 0 and before to 0 at 1 and behind."""
    return (math.cos(math.pi * min(max(share, 0.0), 1.0)) + 1.0) / 2.0
