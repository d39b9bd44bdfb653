"""ToMe: pairs of similar tokens are merged into their mean, r tokens fewer in every block.

Source: Bolya et al., ICLR 2023 (arXiv 2210.09461), and its published code.

Shape letters: B batch, N tokens, M of them after merging, r merged; S tokens at even places, T at odd ones; E width of
what is compared, D model width.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Shaped

from stce_jax.errors import ConfigError, check_range, check_whole
from stce_jax.models.ops.precision import widened
from stce_jax.models.reductions import reduction
from stce_jax.models.tokens import Tokens

MOST_MERGED = 2**20  # tokens; what a block cannot merge it leaves
_PRECISION = jax.lax.Precision.HIGHEST  # fewer bits would change partners, and round the residual stream


class ToMe(nn.Module):
    """Merges the r tokens at even places that are most similar to one at an odd place into that one.

    A merged token is the mean of its members, weighted by how many first tokens each stands for. There are no
    parameters: a model that was trained without it can be evaluated with it.

    Attributes:
      blocks: those that merge; None: all, as ToMe.
      r: how many tokens each of `blocks` merges, at most half of those that are no leading ones; or several, one for
        each of the first blocks, the others merge none. (r,) is the same as r. ToMe takes 13 for DeiT-S.
      inflection: of a single r, -1..1: how it changes from block to block, see `schedule`; 0: not, -1: from 2 r to 0.
      keep_rate: instead of r, what is to be left, see `reduction.kept_counts`; a block that would have to merge more
        than half of its tokens leaves more. The comparison study's blocks are then 3, 6 and 9 of DeiT-S. None: r.
      proportional: whether attention counts a token as often as it stands for first ones. ToMe does, but for models
        that were trained by masked autoencoding without it. The mean of merged tokens weighs them in any case.
      stage, stages: set by the body.
    """

    blocks: tuple[int, ...] | None = None
    r: int | Sequence[int] = 13
    inflection: float = 0.0
    keep_rate: reduction.KeepRate | None = None
    proportional: bool = True
    stage: int = 0
    stages: int = 0

    needs: ClassVar[tuple[str, ...]] = ("key",)
    needs_class_token: ClassVar[bool] = False

    def check(self) -> None:
        amounts = reduction.several(self.r)
        for amount in amounts or (None,):
            check_whole("model option r", amount, 0, MOST_MERGED)
        check_range("model option inflection", self.inflection, -1, 1)
        if self.blocks is not None and len(amounts) > max(1, len(self.blocks)):
            raise ConfigError(f"r lists {len(amounts)} numbers for {len(self.blocks)} blocks; give one a block, or one")
        if self.keep_rate is not None:
            reduction.check_keep_rate(self.keep_rate, self.blocks)
        if self.inflection and (len(amounts) > 1 or self.keep_rate is not None):
            raise ConfigError("inflection changes one r from block to block; leave it out, or several r and keep_rate")

    def counts(self, grid: tuple[int, int], stages: int) -> list[int]:
        initial = math.prod(grid)
        counts, count = [], initial
        for amount in self._amounts(initial, stages):
            count -= capped(amount, count, leading=0)
            counts.append(count)
        return counts

    def __call__(self, tokens: Tokens, given: Mapping[str, Float[Array, "..."]], *, train: bool) -> Tokens:
        del train  # the same in training and inference
        amount = self._amounts(tokens.initial, max(self.stages, self.stage + 1))[self.stage]
        tokens = dataclasses.replace(tokens, proportional=self.proportional)
        metric = widened(given["key"]).mean(axis=2)  # over heads
        matching = match(metric, amount, leading=tokens.leading, mask=tokens.mask)
        if matching is None:
            return tokens
        assignment = places(matching, tokens.shape[1], tokens.leading)[:, tokens.leading :] - tokens.leading
        if tokens.mask is not None:
            assignment = jnp.where(tokens.mask[:, tokens.leading :], assignment, -1)
        reduction.sow_assignment(self, assignment)
        return merge(tokens, matching)

    def _amounts(self, initial: int, stages: int) -> list[int]:
        """How many tokens each stage is to merge, before the cap."""
        if self.keep_rate is None:
            return schedule(self.r, stages, self.inflection)
        kept = [initial, *reduction.kept_counts(self.keep_rate, initial, stages)]
        return [max(0, before - after) for before, after in itertools.pairwise(kept)]


class Matching(NamedTuple):
    """Which tokens at even places are merged, and into which at odd ones. The k-th at an odd place lies at 2 k + 1.

    Attributes:
      merged: the places among the even ones of those that are merged, the most similar first.
      partners: the places among the odd ones that they are merged into; several may go to one.
      kept: the places among the even ones of those that stay, in the order of the output.
    """

    merged: Int[Array, "B r"]
    partners: Int[Array, "B r"]
    kept: Int[Array, "B S-r"]


def match(
    metric: Float[Array, "B N E"], r: int, *, leading: int, mask: Bool[Array, "B N"] | None = None
) -> Matching | None:
    """Bipartite soft matching: every token at an even place finds the most similar at an odd one; the r best merge.

    Args:
      metric: what is compared, by the cosine.
      r: how many are to merge; see `capped`.
      leading: tokens in front that neither merge nor are merged into: a class token, or one and a distillation token.
      mask: which tokens are real; None: all. No others are matched with these. Where there are fewer than r to merge,
        those that are not real go, which `merge` gives no weight.

    Returns:
      The matching, or None where nothing can merge. Selects only: no gradient flows through it.
    """
    r = capped(r, metric.shape[1], leading)
    if not r:
        return None
    metric = widened(jax.lax.stop_gradient(metric))
    norm = jnp.linalg.norm(metric, axis=-1, keepdims=True)
    metric = metric / jnp.where(norm > 0.0, norm, 1.0)
    similarity = jnp.einsum("bse,bte->bst", metric[:, ::2], metric[:, 1::2], precision=_PRECISION)
    if mask is not None:
        similarity = jnp.where(mask[:, ::2, None] & mask[:, None, 1::2], similarity, -2.0)  # below every cosine
    similarity = similarity.at[:, : (leading + 1) // 2].set(-jnp.inf).at[:, :, : leading // 2].set(-jnp.inf)
    order = jnp.argsort(-similarity.max(axis=-1), axis=-1)  # stable
    merged, kept = order[:, :r], order[:, r:]
    partners = jnp.take_along_axis(similarity.argmax(axis=-1), merged, axis=1)
    return Matching(merged, partners, jnp.sort(kept, axis=-1) if leading else kept)


def capped(r: int, count: int, leading: int) -> int:
    """How many of `count` tokens can merge where r are to: at most half of those that are no leading ones."""
    return max(0, min(r, (count - leading) // 2))


def merge(tokens: Tokens, matching: Matching) -> Tokens:
    """The leading tokens, those at even places that stay, and those at odd places with what is merged into them.

    Values become means weighted by sizes, sizes sums; what is not real weighs nothing. Gradients flow through values.
    """
    dtype = jnp.promote_types(tokens.values.dtype, jnp.float32)
    sizes = jnp.ones(tokens.shape[:2], dtype) if tokens.sizes is None else tokens.sizes.astype(dtype)
    tokens = dataclasses.replace(tokens, sizes=sizes)
    kept, merged = tokens.select(2 * matching.kept), tokens.select(2 * matching.merged)
    odd = tokens.select(slice(1, None, 2))
    into = jax.nn.one_hot(matching.partners, odd.shape[1], dtype=dtype)  # [B, r, T]

    def weighed(part: Tokens) -> tuple[Float[Array, "B m"], Float[Array, "B m D"]]:
        weights, values = part.sizes, part.values.astype(dtype)
        assert weights is not None
        if part.mask is not None:
            weights, values = jnp.where(part.mask, weights, 0.0), jnp.where(part.mask[..., None], values, 0.0)
        return weights, weights[..., None] * values

    (own, sums), (joining, joining_sums) = weighed(odd), weighed(merged)
    sizes = own + jnp.einsum("brt,br->bt", into, joining, precision=_PRECISION)
    sums = sums + jnp.einsum("brt,brd->btd", into, joining_sums, precision=_PRECISION)
    if tokens.mask is not None:
        real = sizes > 0.0
        odd = dataclasses.replace(odd, mask=real)
        sizes = jnp.where(real, sizes, 1.0)  # attention takes their logarithm
    odd = dataclasses.replace(odd, values=(sums / sizes[..., None]).astype(tokens.values.dtype), sizes=sizes)
    return jax.tree.map(lambda even, odd: _ordered(even, odd, tokens.leading), kept, odd)


def places(matching: Matching, count: int, leading: int) -> Int[Array, "B N"]:
    """The place after merging of each of `count` tokens before it."""
    odd = jnp.broadcast_to(jnp.arange(1, count, 2), (matching.merged.shape[0], count // 2))
    first = _ordered(2 * matching.kept, odd, leading)  # [B, M]: where each token after merging was
    gone = reduction.assignment_of(first, count)
    joined = jnp.take_along_axis(gone, 2 * matching.partners + 1, axis=1)
    return jax.vmap(lambda row, merged, place: row.at[merged].set(place))(gone, 2 * matching.merged, joined)


def membership(
    places: Int[Array, "B N"], count: int, before: Bool[Array, "B N I"] | None = None
) -> Bool[Array, "B M I"]:
    """Which first tokens, of I, each of `count` tokens stands for.

    Args:
      places: of each token, where it went, see `places`.
      count: M.
      before: which first tokens each of the N stood for; None: they are the first ones.
    """
    own = places[:, None, :] == jnp.arange(count)[None, :, None]  # [B, M, N]
    if before is None:
        return own
    return jnp.einsum("bmn,bni->bmi", own.astype(jnp.float32), before.astype(jnp.float32)) > 0.5


def schedule(r: int | Sequence[int], stages: int, inflection: float = 0.0) -> list[int]:
    """How many tokens each stage merges.

    Args:
      r: for all of them; or several, one a stage, followed by zeros. One alone, as a config gives it, is for all.
      stages: number of merging blocks.
      inflection: c, -1..1; from stage to stage r runs in a straight line from (1 - c) r to (1 + c) r, rounded down.

    Raises:
      ConfigError: there are more numbers than stages.
    """
    amounts = reduction.several(r)
    if len(amounts) > max(1, stages):
        raise ConfigError(f"r lists {len(amounts)} numbers for {stages} blocks; give one a block, or one for all")
    if len(amounts) > 1:
        return [*amounts, *[0] * (stages - len(amounts))]
    (amount,) = amounts
    first = int(amount * (1.0 - inflection))
    step = (2 * amount - 2 * first) / max(1, stages - 1)
    return [int(first + stage * step) for stage in range(stages)]


def _ordered(even: Shaped[Array, "B k *d"], odd: Shaped[Array, "B T *d"], leading: int) -> Shaped[Array, "B M *d"]:
    """The order after merging: leading tokens, at even and odd places in turn, then even ones, then odd ones."""
    front = [(odd if place % 2 else even)[:, place // 2 : place // 2 + 1] for place in range(leading)]
    return jnp.concatenate([*front, even[:, (leading + 1) // 2 :], odd[:, leading // 2 :]], axis=1)
