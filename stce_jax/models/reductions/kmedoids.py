"""K-Medoids: tokens are clustered, and each cluster's medoid stands for it.

Source: the clustering baseline of Haurum et al. 2023 ("Which Tokens to Use?", arXiv 2308.04657), as its published code
computes it: a medoid is the member whose attention received, times its distance to all tokens of the image, is least.
The paper speaks of the distance to its own cluster's.

Shape letters: B batch, N tokens, n of them the image's, K clusters; A attention heads, D model width.
"""

import itertools
import math
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from stce_jax.errors import check_whole
from stce_jax.models.ops.distances import squared_distances
from stce_jax.models.reductions import reduction
from stce_jax.models.reductions.topk import keep
from stce_jax.models.tokens import Tokens

MOST_ITERATIONS = 1000


class KMedoids(nn.Module):
    """Keeps the medoids of K clusters of the image tokens, before its blocks.

    Attributes:
      blocks: those before which it clusters, not the first; DeiT-S of 12 blocks reduces before 3, 6 and 9.
      keep_rate: says what K is, see `reduction.kept_counts`.
      medoid_iterations: how often medoids are chosen anew; 0: they stay those that attention chooses.
      equal_weight: attention has no say: the first medoids lie far apart, starting with one that training draws for
        the whole batch, and evaluation takes from the middle of the row.
      stage: set by the body.
    """

    blocks: tuple[int, ...] | None = (3, 6, 9)
    keep_rate: reduction.KeepRate = 0.7
    medoid_iterations: int = 3
    equal_weight: bool = False
    stage: int = 0

    needs: ClassVar[tuple[str, ...]] = ("weights",)
    needs_class_token: ClassVar[bool] = False
    before: ClassVar[bool] = True

    def check(self) -> None:
        reduction.check_keep_rate(self.keep_rate, self.blocks)
        check_whole("model option medoid_iterations", self.medoid_iterations, 0, MOST_ITERATIONS)

    def counts(self, grid: tuple[int, int], stages: int) -> list[int]:
        return list(itertools.accumulate(reduction.kept_counts(self.keep_rate, math.prod(grid), stages), min))

    def __call__(self, tokens: Tokens, given: Mapping[str, Float[Array, "..."]], *, train: bool) -> Tokens:
        reduction.check_unmasked(tokens, "kmedoids")
        points = jax.lax.stop_gradient(tokens.image_values())
        count = points.shape[1]
        assert tokens.initial_grid is not None
        clusters = self.counts(tokens.initial_grid, self.stage + 1)[self.stage]
        if clusters >= count:
            return tokens
        distances = jnp.sqrt(squared_distances(points))
        weights = jax.lax.stop_gradient(attention_received(given["weights"], tokens.leading))
        if self.equal_weight:
            weights = jnp.ones_like(weights)
            first = jax.random.randint(self.make_rng("dropout"), (), 0, count) if train else jnp.asarray(count // 2)
            medoids = far_apart(distances, first, clusters)
        else:
            medoids = jax.lax.top_k(weights, clusters)[1]
        medoids, assignment = cluster(distances, weights, medoids, self.medoid_iterations)
        reduction.sow_assignment(self, assignment)
        return keep(tokens, medoids)


def attention_received(weights: Float[Array, "B A N N"], leading: int) -> Float[Array, "B n"]:
    """How much attention each image token gets, summed over heads and all tokens, the leading ones included."""
    return weights.sum(axis=(1, 2))[:, leading:]


def cluster(
    distances: Float[Array, "B n n"], weights: Float[Array, "B n"], medoids: Int[Array, "B K"], iterations: int
) -> tuple[Int[Array, "B K"], Int[Array, "B n"]]:
    """K-medoids from given medoids: (the last medoids, the cluster of each token). Ties: the first.

    In each iteration every token goes to the nearest medoid, and of each cluster the member with the least weight times
    sum of distances to all tokens becomes its medoid. A cluster without members, as duplicates make them, gets token 0.
    """
    costs = weights * distances.sum(axis=-1)  # the same in all iterations
    ranks = jnp.arange(medoids.shape[1])[None, :, None]  # [1, K, 1]

    def assigned(medoids: Int[Array, "B K"]) -> Int[Array, "B n"]:
        return jnp.take_along_axis(distances, medoids[..., None], axis=1).argmin(axis=1)

    def again(_: int, medoids: Int[Array, "B K"]) -> Int[Array, "B K"]:
        own = assigned(medoids)[:, None] == ranks  # [B, K, n]
        return jnp.where(own, costs[:, None], jnp.inf).argmin(axis=-1).astype(medoids.dtype)

    medoids = jax.lax.fori_loop(0, iterations, again, medoids)
    return medoids, assigned(medoids)


def far_apart(distances: Float[Array, "B n n"], first: Int[Array, ""], clusters: int) -> Int[Array, "B K"]:
    """First medoids without weights: the first, alike in all images, then each time the token farthest from any chosen.

    The published code takes the largest of the distances to those chosen, not the smallest as is usual.
    """
    batch, count, _ = distances.shape

    def add(
        rank: int, state: tuple[Int[Array, "B K"], Float[Array, "B n"]]
    ) -> tuple[Int[Array, "B K"], Float[Array, "B n"]]:
        medoids, farthest = state
        last = medoids[:, rank - 1]
        own = jnp.take_along_axis(distances, last[:, None, None], axis=1)[:, 0]  # [B, n]
        farthest = jnp.maximum(farthest, own)
        chosen = (medoids[:, :, None] == jnp.arange(count)[None, None]).any(axis=1)  # [B, n]
        new = jnp.where(chosen, 0.0, farthest).argmax(axis=-1).astype(medoids.dtype)
        return medoids.at[:, rank].set(new), farthest

    medoids = jnp.full((batch, clusters), -1, jnp.int32).at[:, 0].set(first.astype(jnp.int32))
    if clusters == 1:
        return medoids
    # Once before the loop: within shard_map, what a loop carries must differ by device from the start.
    state = add(1, (medoids, jnp.zeros_like(distances[:, 0])))
    return jax.lax.fori_loop(2, clusters, add, state)[0]
