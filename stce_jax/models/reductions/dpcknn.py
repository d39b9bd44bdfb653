"""DPC-KNN: tokens are clustered around peaks of density, and each cluster becomes its weighted mean.

Source: Haurum et al. 2023 ("Which Tokens to Use?", arXiv 2308.04657) and its published code, after the clustering of
TCFormer (Zeng et al., CVPR 2022), without the latter's attention bias and convolution.

Shape letters: B batch, n image tokens, K clusters, D model width.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from stce_jax.errors import check_whole
from stce_jax.models.layers import linear
from stce_jax.models.ops.distances import squared_distances
from stce_jax.models.ops.precision import widened
from stce_jax.models.reductions import reduction
from stce_jax.models.tokens import Tokens

MOST_NEIGHBOURS = 2**20
NOISE = 1e-6  # largest that is added to a density, so that tokens alike differ
EPSILON = 1e-6  # added to a cluster's weight
_PRECISION = jax.lax.Precision.HIGHEST  # fewer bits would round the residual stream


class DPCKNN(nn.Module):
    """Merges the image tokens of each of K clusters into one, before its blocks.

    Every stage has D + 1 parameters, a linear layer "score" whose exponential is a token's weight in the mean.

    Attributes:
      blocks: those before which it clusters, not the first; DeiT-S of 12 blocks reduces before 3, 6 and 9.
      keep_rate: says what K is, see `reduction.kept_counts`.
      neighbours: those that a token's density is of, itself among them.
      equal_weight: all tokens weigh the same, and there is no layer.
      stage: set by the body.
    """

    blocks: tuple[int, ...] | None = (3, 6, 9)
    keep_rate: reduction.KeepRate = 0.7
    neighbours: int = 5
    equal_weight: bool = False
    stage: int = 0

    needs: ClassVar[tuple[str, ...]] = ()
    needs_class_token: ClassVar[bool] = False
    before: ClassVar[bool] = True

    def check(self) -> None:
        reduction.check_keep_rate(self.keep_rate, self.blocks)
        check_whole("model option neighbours", self.neighbours, 1, MOST_NEIGHBOURS)

    def counts(self, grid: tuple[int, int], stages: int) -> list[int]:
        return list(itertools.accumulate(reduction.kept_counts(self.keep_rate, math.prod(grid), stages), min))

    @nn.compact
    def __call__(self, tokens: Tokens, given: Mapping[str, Float[Array, "..."]], *, train: bool) -> Tokens:
        del given  # tokens alone are compared
        reduction.check_unmasked(tokens, "dpcknn")
        values = tokens.image_values()
        batch, count, width = values.shape
        if self.equal_weight:
            weights = jnp.ones((batch, count), jnp.promote_types(values.dtype, jnp.float32))
        else:  # also where nothing is merged: variables are those of all image sizes
            scores = linear(1, values.dtype, "score")(values.reshape(-1, width))  # as rows, see `layers.Attention`
            weights = jnp.exp(widened(scores)).reshape(batch, count)
        assert tokens.initial_grid is not None
        clusters = self.counts(tokens.initial_grid, self.stage + 1)[self.stage]
        if clusters >= count:
            return tokens
        noise = drawn_noise(self.make_rng("dropout") if train else None, (batch, count), weights.dtype)
        assignment = cluster(values, noise, clusters, self.neighbours)[1]
        reduction.sow_assignment(self, assignment)
        return merge(tokens, weights, assignment, clusters)


def cluster(
    points: Float[Array, "B n D"], noise: Float[Array, "#B n"], clusters: int, neighbours: int
) -> tuple[Int[Array, "B K"], Int[Array, "B n"]]:
    """Density peaks clustering: (the centres, the largest peak first; the cluster of each token). Ties: the first.

    A token's density is exp(-the mean of its squared distances to the nearest, itself among them), distances being
    divided by sqrt(D). Centres have the largest product of density and distance to the nearest denser token. The others
    go to the nearest centre. Selects only: no gradient flows through it.

    Args:
      points: the tokens.
      noise: 0..1, of which a millionth is added to densities.
      clusters, neighbours: K <= n, and how many the nearest are; of n tokens at most n.
    """
    squared = squared_distances(jax.lax.stop_gradient(points)) / points.shape[-1]  # [B, n, n]
    nearest = -jax.lax.top_k(-squared, min(neighbours, points.shape[1]))[0]
    density = jnp.exp(-nearest.mean(axis=-1)) + NOISE * noise
    distances = jnp.sqrt(squared)
    denser = density[:, None, :] > density[:, :, None]  # [B, n, n]: by row
    largest = distances.max(axis=(1, 2), keepdims=True)  # the distance of the densest
    peaks = jnp.where(denser, distances, largest).min(axis=-1)
    centres = jax.lax.top_k(peaks * density, clusters)[1]
    assignment = jnp.take_along_axis(distances, centres[..., None], axis=1).argmin(axis=1).astype(jnp.int32)
    # Of tokens alike, several may be centres.
    own = reduction.assignment_of(centres, points.shape[1])
    return centres, jnp.where(own < 0, assignment, own)


def merge(tokens: Tokens, weights: Float[Array, "B n"], assignment: Int[Array, "B n"], clusters: int) -> Tokens:
    """The leading tokens, and of each cluster the mean weighted by positive weights. Gradients: values and weights.

    The divisor is larger than the sum of weights by `EPSILON`, as in the published code.
    """
    members = jax.nn.one_hot(assignment, clusters, dtype=weights.dtype)  # [B, n, K]
    shares = members * weights[..., None]
    shares = shares / (shares.sum(axis=1, keepdims=True) + EPSILON)
    values = tokens.image_values()
    means = jnp.einsum("bnk,bnd->bkd", shares, values.astype(shares.dtype), precision=_PRECISION)
    parts: dict[str, Any] = {
        "values": jnp.concatenate([tokens[:, : tokens.leading], means.astype(values.dtype)], axis=1)
    }
    if tokens.sizes is not None:
        sizes = jnp.einsum("bnk,bn->bk", members, tokens.sizes[:, tokens.leading :], precision=_PRECISION)
        parts["sizes"] = jnp.concatenate([tokens.sizes[:, : tokens.leading], sizes], axis=1)
    return dataclasses.replace(tokens, **parts, grid=None)


def drawn_noise(key: Key[Array, ""] | None, shape: tuple[int, int], dtype: DTypeLike) -> Float[Array, "#B n"]:
    """Uniform numbers, 0..1; without a key always the same, and alike for all images, whatever others are with them."""
    if key is None:
        return jax.random.uniform(jax.random.key(0), (1, shape[1]), dtype)
    return jax.random.uniform(key, shape, dtype)
