"""Fixed patterns: the image tokens near the middle of the grid are kept, whatever the image shows.

Source: the heuristic baselines of Haurum et al. 2023 (arXiv 2308.04657) and their published code.

Shape letters: B batch, M tokens kept, h w grid.
"""

import math
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from stce_jax.errors import ConfigError, check_choice, check_range
from stce_jax.models.reductions import reduction
from stce_jax.models.reductions.topk import keep
from stce_jax.models.tokens import Tokens

DISTANCES = ("l1", "l2", "linf")
LARGEST_RADIUS = 1e4
DIGITS = 9  # decimals to which distances are equal


class Pattern(nn.Module):
    """Before its blocks, drops the tokens farther from the grid's middle than a threshold, which falls stage by stage.

    The published code keeps dropped tokens and masks them in attention, as queries and as keys. As the pattern is known
    when the model is compiled, they are left out here: what remains is computed as there, by less work.

    Attributes:
      blocks: those before which it acts; DeiT-S of 12 blocks reduces before 3, 6 and 9.
      keep_rate: see `reduction.kept_counts`; a stage keeps the whole ring of tokens at equal distance which brings it
        nearest to that count. With `contiguous` it means nothing.
      distance: "l1", "l2" or "linf", from the middle.
      contiguous: thresholds fall in equal steps instead, from the corner's distance towards `min_radius`, which a block
        behind the last would reach; `blocks` are then neighbours, such as (3, 4, 5, 6).
      min_radius: in steps of the grid.
      stage: set by the body.
    """

    blocks: tuple[int, ...] | None = (3, 6, 9)
    keep_rate: reduction.KeepRate = 0.7
    distance: str = "l2"
    contiguous: bool = False
    min_radius: float = 1.0
    stage: int = 0

    needs: ClassVar[tuple[str, ...]] = ()
    needs_class_token: ClassVar[bool] = False
    keeps_places: ClassVar[bool] = True
    before: ClassVar[bool] = True

    def check(self) -> None:
        reduction.check_keep_rate(self.keep_rate, self.blocks)
        check_choice("model option distance", self.distance, DISTANCES)
        check_range("model option min_radius", self.min_radius, 0, LARGEST_RADIUS)
        if not self.contiguous:
            return
        if self.blocks is None:
            raise ConfigError("contiguous patterns need to know their last block; name the blocks")
        first, last = min(self.blocks), max(self.blocks)
        if sorted(self.blocks) != list(range(first, last + 1)):
            raise ConfigError(
                f"contiguous patterns reduce before neighbouring blocks; give all from {first} to {last}, or "
                "contiguous=False"
            )

    def counts(self, grid: tuple[int, int], stages: int) -> list[int]:
        return [len(places) for places in self._places(grid, stages)]

    def __call__(self, tokens: Tokens, given: Mapping[str, Float[Array, "..."]], *, train: bool) -> Tokens:
        del given, train  # the same in training and inference
        grid = tokens.initial_grid
        assert grid is not None
        stages = self.stage + 1 if self.blocks is None else len(self.blocks)
        places = [np.arange(math.prod(grid)), *self._places(grid, stages)]
        before, after = places[self.stage], places[self.stage + 1]
        if len(after) == len(before):
            return tokens
        own = jnp.asarray(np.searchsorted(before, after), jnp.int32)
        kept = jnp.broadcast_to(own, (tokens.values.shape[0], len(after)))
        reduction.sow_assignment(self, reduction.assignment_of(kept, len(before)))
        return keep(tokens, kept)

    def _places(self, grid: tuple[int, int], stages: int) -> list[Int[np.ndarray, "M"]]:
        """The places of the first grid that each stage keeps."""
        distances = distance_map(grid, self.distance)
        if self.contiguous:
            thresholds = falling_thresholds(distances, self.min_radius, stages)
        else:
            counts = reduction.kept_counts(self.keep_rate, distances.size, stages)
            thresholds = [nearest_threshold(distances, count) for count in counts]
        places = kept_places(distances, thresholds)
        if empty := [stage for stage, kept in enumerate(places) if not len(kept)]:
            raise ConfigError(
                f"min_radius {self.min_radius} leaves none of {distances.size} tokens at stage {empty[0] + 1} of "
                f"{stages}; give a larger one"
            )
        return places


def distance_map(grid: tuple[int, int], distance: str) -> Float[np.ndarray, "h w"]:
    """How far each place of a grid is from its middle, by "l1", "l2" or "linf".

    Along a side of P places coordinates are P numbers in equal steps from -P // 2 to P // 2, both rounded down: of an
    odd side -4 to 3 for 7, whose middle is beside that of the grid, as in the published code.
    """
    rows, columns = (np.linspace(-side // 2, side // 2, side) for side in grid)
    rows, columns = np.abs(rows)[:, None], np.abs(columns)[None, :]
    if distance == "l1":
        found = rows + columns
    else:
        found = np.hypot(rows, columns) if distance == "l2" else np.maximum(rows, columns)
    return found.round(DIGITS)  # places that lie opposite one another are equally far


def nearest_threshold(distances: Float[np.ndarray, "h w"], count: int) -> float:
    """The distance within which there is the number of places nearest to `count`; of equally near ones the smaller."""
    found, sizes = np.unique(distances, return_counts=True)
    return float(found[np.abs(np.cumsum(sizes) - count).argmin()])


def falling_thresholds(distances: Float[np.ndarray, "h w"], smallest: float, stages: int) -> list[float]:
    """A threshold for each stage, in equal steps between the first corner's distance and `smallest`, both left out."""
    return np.linspace(distances[0, 0], smallest, stages + 2)[1:-1].tolist()


def kept_places(distances: Float[np.ndarray, "h w"], thresholds: list[float]) -> list[Int[np.ndarray, "M"]]:
    """For each stage the places within its threshold, row by row; what one has dropped does not come back."""
    falling = np.minimum.accumulate(np.asarray(thresholds, float))
    return [np.flatnonzero(distances <= threshold + 10.0**-DIGITS) for threshold in falling]
