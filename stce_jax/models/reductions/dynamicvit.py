"""DynamicViT: a small network scores each image token, and those with the largest scores are kept.

Source: Rao et al., NeurIPS 2021 (arXiv 2106.02034), as the comparison study of Haurum et al. 2023 codes it.

Shape letters: B batch, N tokens, n of them the image's, M of them kept, D model width.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from stce_jax.errors import ConfigError, check_range
from stce_jax.models.layers import LayerNorm, linear
from stce_jax.models.ops.activations import gelu
from stce_jax.models.ops.norms import TORCH_LAYER_NORM_EPSILON
from stce_jax.models.ops.precision import widened
from stce_jax.models.reductions import reduction
from stce_jax.models.reductions.topk import keep, most_attended
from stce_jax.models.tokens import Tokens

MEAN_EPSILON = 1e-6  # added to the mean of the live tokens, as the published code does
LARGEST_WEIGHT = 1e3


class DynamicViT(nn.Module):
    """Before its blocks, keeps the M image tokens with the largest scores, in descending order.

    In training no token leaves. A decision to keep or drop is drawn for each, from its scores (hard Gumbel-softmax,
    whose gradient is that of the soft one), times that of the stage before. It becomes the tokens' `policy`: in all
    blocks from there on dropped tokens are seen by none but themselves. A loss brings the share that is kept to the
    keep rate: the mean over stages and images of (mean decision - share)^2, times `ratio_weight`. The published
    training adds two losses that compare with a teacher, which this one has not: it trains from the labels alone.

    Attributes:
      blocks: those before which it acts; DeiT-S of 12 blocks reduces before 3, 6 and 9.
      keep_rate: see `reduction.kept_counts`.
      ratio_weight: of that loss; 0: none.
      stage: set by the body.
    """

    blocks: tuple[int, ...] | None = (3, 6, 9)
    keep_rate: reduction.KeepRate = 0.7
    ratio_weight: float = 2.0
    stage: int = 0

    needs: ClassVar[tuple[str, ...]] = ()
    needs_class_token: ClassVar[bool] = False
    keeps_places: ClassVar[bool] = True
    before: ClassVar[bool] = True

    def check(self) -> None:
        reduction.check_keep_rate(self.keep_rate, self.blocks)
        check_range("model option ratio_weight", self.ratio_weight, 0, LARGEST_WEIGHT)
        if not self.blocks:
            raise ConfigError("dynamicvit's loss is the mean over its blocks; name them in blocks")

    def counts(self, grid: tuple[int, int], stages: int) -> list[int]:
        return reduction.kept_counts(self.keep_rate, math.prod(grid), stages)

    @nn.compact
    def __call__(self, tokens: Tokens, given: Mapping[str, Float[Array, "..."]], *, train: bool) -> Tokens:
        del given
        assert self.blocks
        values, previous = tokens.image_values(), live_tokens(tokens)
        scores = Predictor(name="predictor")(values, previous)
        if train and not self.is_initializing():
            decisions = draw_decisions(self.make_rng("dropout"), scores) * previous
            share = reduction.shares(self.keep_rate, self.stage + 1)[-1]
            real = None if tokens.mask is None else tokens.mask[:, tokens.leading :]
            loss = jnp.square(decisions.mean(axis=1, where=real) - share).mean()
            reduction.sow_scalar(self, "losses", "ratio", self.ratio_weight / len(self.blocks) * loss)
            leading = jnp.ones((len(decisions), tokens.leading), decisions.dtype)
            return dataclasses.replace(tokens, policy=jnp.concatenate([leading, decisions], axis=1))
        assert tokens.initial_grid is not None
        count = self.counts(tokens.initial_grid, self.stage + 1)[-1]
        if count >= values.shape[1]:
            return tokens
        kept = most_attended(jnp.where(previous > 0, scores[:, :, 0], -jnp.inf), count)
        reduction.sow_assignment(self, reduction.assignment_of(kept, values.shape[1]))
        return keep(tokens, kept)


class Predictor(nn.Module):
    """Scores each image token by itself and by the mean of the live ones: log-probabilities to keep and to drop."""

    @nn.compact
    def __call__(self, values: Float[Array, "B n D"], live: Float[Array, "B n"]) -> Float[Array, "B n 2"]:
        """float32 at least.

        Args:
          values: the image tokens.
          live: 1 live, 0 dropped or not real.
        """
        width, dtype = values.shape[-1], values.dtype
        hidden = LayerNorm(dtype, TORCH_LAYER_NORM_EPSILON, name="norm")(values)
        hidden = gelu(linear(width, dtype, "in")(hidden))
        own, shared = hidden[..., : width // 2], widened(hidden[..., width // 2 :])
        weights = live[..., None].astype(shared.dtype)
        count = jnp.maximum(weights.sum(axis=1, keepdims=True), 0.5)  # 1 at least, but 0 where all are dropped
        mean = (shared * weights).sum(axis=1, keepdims=True) / count + MEAN_EPSILON
        mean = jnp.broadcast_to(mean.astype(dtype), (*own.shape[:2], mean.shape[-1]))
        hidden = jnp.concatenate([own, mean], axis=-1)  # [B, n, D]
        hidden = gelu(linear(width // 2, dtype, "hidden_1")(hidden))
        hidden = gelu(linear(width // 4, dtype, "hidden_2")(hidden))
        wide = jnp.promote_types(dtype, jnp.float32)  # in bfloat16 many scores would be equal
        return jax.nn.log_softmax(linear(2, wide, "out")(hidden))


def live_tokens(tokens: Tokens) -> Float[Array, "B n"]:
    """How far each image token is live, by the policy and the mask; 1 where there is neither."""
    dtype = jnp.promote_types(tokens.values.dtype, jnp.float32)
    live = jnp.ones(tokens.values.shape[:2], dtype) if tokens.policy is None else tokens.policy
    live = live if tokens.mask is None else jnp.where(tokens.mask, live, 0.0)
    return live[:, tokens.leading :]


def draw_decisions(key: Key[Array, ""], scores: Float[Array, "B n 2"]) -> Float[Array, "B n"]:
    """1 to keep, 0 to drop, drawn with the probabilities whose logarithms are the scores.

    The gradient is that of the softmax of scores and Gumbel noise, at temperature 1 (straight through).
    """
    soft = jax.nn.softmax(scores + jax.random.gumbel(key, scores.shape, scores.dtype))
    hard = (soft[..., 0] >= soft[..., 1]).astype(soft.dtype)
    return hard + (soft[..., 0] - jax.lax.stop_gradient(soft[..., 0]))  # the difference is 0 to the bit
