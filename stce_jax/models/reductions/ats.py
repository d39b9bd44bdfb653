"""ATS, adaptive token sampling: each image keeps as many tokens as its attention is spread over.

Source: Fayyaz et al., Adaptive Token Sampling For Efficient Vision Transformers, ECCV 2022 (arXiv 2111.15667), in the
form of the comparison study's code (Haurum et al. 2023, "Which Tokens to Use?", arXiv 2308.04657), whose keep rate sets
the number of samples. The authors' own code differs: it sorts tokens by significance, and has no working keep rate.

Shape letters: B batch, N tokens, n of them the image's, A attention heads, E width of a head, M the most image tokens
that can be left, P sampling points.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from stce_jax.models.ops.attention import attention_weights
from stce_jax.models.ops.precision import widened
from stce_jax.models.reductions import reduction
from stce_jax.models.tokens import Tokens

EPSILON = 1e-6  # added to the sum that significances are divided by


class ATS(nn.Module):
    """Keeps the image tokens that evenly spaced samples of the significance hit, in their order; each once.

    This is reference [16] of the STCE paper. The paper's text calls [16] "AdaViT"; its list has ATS there. Neither of
    the papers that were called AdaViT (Meng et al., CVPR 2022; Yin et al., CVPR 2022, now A-ViT) is this method.

    A token's significance is the class token's attention to it times the length of its value, summed over heads. Where
    few tokens have most of it, many samples hit the same ones, and fewer tokens are left: how many differs from image
    to image. Shapes do not: there are as many places as samples, and a mask says which are taken. The others hold
    copies of the class token, which nothing reads.

    The published code computes attention for the sampled queries alone. To compute all and take the sampled ones
    afterwards, as here, is the same: a query's result depends on no other query.

    Attributes:
      blocks: those that reduce; DeiT-S of 12 blocks reduces in 3, 6 and 9.
      keep_rate: of the samples, see `reduction.kept_counts`; a bound on the tokens that are kept.
      stage: set by the body.
    """

    blocks: tuple[int, ...] | None = (3, 6, 9)
    keep_rate: reduction.KeepRate = 0.7
    stage: int = 0

    needs: ClassVar[tuple[str, ...]] = ("query", "key", "value")
    needs_class_token: ClassVar[bool] = True
    keeps_places: ClassVar[bool] = True

    def check(self) -> None:
        reduction.check_keep_rate(self.keep_rate, self.blocks)

    def counts(self, grid: tuple[int, int], stages: int) -> list[int]:
        initial = math.prod(grid)
        """The most image tokens that can be left after each stage."""
        counts, count = [], initial
        for kept in reduction.kept_counts(self.keep_rate, initial, stages):
            count = min(count, len(sampling_points(kept + 1)))
            counts.append(count)
        return counts

    def __call__(self, tokens: Tokens, given: Mapping[str, Float[Array, "..."]], *, train: bool) -> Tokens:
        del train  # the same in training and inference
        attention = attention_weights(given["query"][:, :1], given["key"], mask=tokens.mask)[:, :, 0]  # [B, A, N]
        scores = significance(attention, given["value"])[:, tokens.leading :]
        mask = None if tokens.mask is None else tokens.mask[:, tokens.leading :]
        samples = reduction.kept_counts(self.keep_rate, tokens.initial, self.stage + 1)[-1] + 1
        points = sampling_points(samples)
        hit = sampled(scores, points, mask)
        block = self.stage if self.blocks is None else sorted(self.blocks)[self.stage]
        reduction.sow_scalar(self, "metrics", f"tokens_block_{block}", hit.sum(axis=1).astype(jnp.float32))
        reduction.sow_assignment(self, jnp.where(hit, jnp.cumsum(hit, axis=1) - 1, -1))
        return keep_hit(tokens, hit, min(len(points), hit.shape[1]))


def significance(attention: Float[Array, "B A N"], value: Float[Array, "B N A E"]) -> Float[Array, "B N"]:
    """The class token's attention to each token times the length of its value, summed over heads; float32 at least."""
    lengths = jnp.sqrt(jnp.square(widened(value)).sum(axis=-1))  # [B, N, A]
    return jax.lax.stop_gradient(jnp.einsum("ban,bna->bn", attention, lengths))


def sampling_points(samples: int) -> Float[np.ndarray, "P"]:
    """Where the significance is sampled: 1/2K, 3/2K, ... below (2K - 1)/2K, float64, for K samples.

    Those are K - 1 points. But the published code has them counted in floating point, and for some K, such as 3, 7 and
    12, comes to K. Whoever has its weights needs its points. ImageNet's 196 tokens at keep rates of 0.25, 0.5, 0.7 and
    0.9 have K - 1.
    """
    start, stop, step = 1 / (2 * samples), (2 * samples - 1) / (2 * samples), 1 / samples
    return start + step * np.arange(math.ceil((stop - start) / step))


def sampled(
    significance: Float[Array, "B n"], points: Float[np.ndarray, "P"], mask: Bool[Array, "B n"] | None = None
) -> Bool[Array, "B n"]:
    """Which tokens are hit: of each point the one whose share of the significance up to and with it is nearest.

    Args:
      significance: of the image tokens, in their order; not negative.
      points: of `sampling_points`.
      mask: which tokens are real; the others are never hit. None: all.

    Of tokens as near the first is hit.
    """
    shares = significance / (significance.sum(axis=1, keepdims=True) + EPSILON)
    upto = jnp.cumsum(shares, axis=1)  # [B, n]
    if mask is not None:
        upto = jnp.where(mask, upto, jnp.inf)  # the published code adds 0.1, for what is not real comes last there
    # By differences: a form with squares would be as wrong as the steps between tokens are large.
    nearest = jnp.abs(upto[:, None, :] - jnp.asarray(points, upto.dtype)[None, :, None]).argmin(axis=2)  # [B, P]
    hit = jax.vmap(lambda row, own: row.at[own].set(True))(jnp.zeros(upto.shape, bool), nearest)
    return hit if mask is None else hit & mask  # where no token is real, the first is nearest


def keep_hit(tokens: Tokens, hit: Bool[Array, "B n"], most: int) -> Tokens:
    """The leading tokens, then the image tokens that are hit, `most` places for them; the mask says which are taken."""
    order: Int[Array, "B M"] = jnp.argsort(~hit, axis=1, stable=True)[:, :most]
    taken = jnp.take_along_axis(hit, order, axis=1)  # [B, M]
    leading = jnp.broadcast_to(jnp.arange(tokens.leading), (hit.shape[0], tokens.leading))
    places = jnp.concatenate([leading, jnp.where(taken, order + tokens.leading, 0)], axis=1)
    real = jnp.concatenate([jnp.ones(leading.shape, bool), taken], axis=1)
    return dataclasses.replace(tokens.select(places), mask=real)
