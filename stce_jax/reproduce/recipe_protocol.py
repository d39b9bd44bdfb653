"""The protocol of the search for a recipe (docs/recipe.md) as code: gains, the forward selection, the final comparison.

Whoever changes what is trained or decided here makes another version of it.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from stce_jax.analysis.crossed import Crossed, crossed_mean, holm
from stce_jax.configs.tables._recipe_steps import STEPS
from stce_jax.configs.tables.recipe import BASE, INGREDIENTS
from stce_jax.reproduce.results import Result

VERSION, EARLIER = 2, (1,)  # of earlier ones the rows are as they were, and their results count
SEARCH, TEST = "recipe", "recipe_test"
TABLES = (SEARCH, TEST)
SEEDS = (0, 1, 2)  # of every row, in the search and in the final comparison
MARGIN = 0.005  # of top-1 on the images held out: what a step must add to be kept
MOST_STEPS = 8  # that are trained, those of version 1 included
ALPHA = 0.05  # of the final comparison at a scale, which has one look
TARGETS = (0.25, 0.40)  # share of the base's errors that the result is to avoid: the target, and what would be more
_CLAIM = "modern makes fewer errors than small_folder as shipped"
_PAIRS = (
    ("", "modern", BASE),
    (", both with patches", "modern_patch", "base_patch"),
    (", both with a convolution stem", "modern_conv", "base_conv"),
)


@dataclasses.dataclass(frozen=True)
class Gain:
    """What a row has more than the base, on the same seeds and images that were held out.

    Attributes:
      run: name of the row.
      seeds: of both.
      mean: of top-1, a fraction.
      difference: over seeds and images; None with fewer than two seeds.
    """

    run: str
    seeds: tuple[int, ...]
    mean: float
    difference: Crossed | None


def gain(first: Result, second: Result) -> Gain | None:
    """What `first` has more than `second`; None if they share no seed of the protocol."""
    seeds = tuple(seed for seed in SEEDS if seed in first.seeds and seed in second.seeds)
    if not seeds:
        return None
    own, other = (of.hits[[of.seeds.index(seed) for seed in seeds]].astype(np.float64) for of in (first, second))
    values = own - other
    return Gain(first.row.run, seeds, float(values.mean()), crossed_mean(values) if len(seeds) > 1 else None)


def gains(results: Mapping[str, Result]) -> list[Gain]:
    """The gain of each single ingredient that is there over the base, largest first; of equal ones the table's order.

    Args:
      results: {run: its result}, of one scale.
    """
    if BASE not in results:
        return []
    found = [gain(results[name], results[BASE]) for name in INGREDIENTS if name in results]
    return sorted((own for own in found if own), key=lambda own: -own.mean)


@dataclasses.dataclass(frozen=True)
class Selection:
    """How far the forward selection is.

    Attributes:
      kept: ingredients of the recipe so far, in the order in which they were taken.
      refused: those whose step did not add `MARGIN`.
      next: the recipe to be trained next; () if there is none.
      why: why there is none, in words; "" if there is one.
    """

    kept: tuple[str, ...]
    refused: tuple[str, ...]
    next: tuple[str, ...]
    why: str


def select(results: Mapping[str, Result], scale: str) -> Selection:
    """The forward selection by what is finished: which ingredients are kept, and which step comes next.

    Candidates are the deciding ingredients with a gain above 0, largest first. The first is kept as it is, for its row
    is trained already. Each further one that shares no family with what is kept is added in a row of its own, and kept
    if that row's mean top-1 is at least `MARGIN` above that of the recipe so far.

    Args:
      results: {run: its result}, of one scale; of steps as `STEPS` numbers them.
      scale: of them.
    """
    deciding = [name for name, ingredient in INGREDIENTS.items() if ingredient.decides]
    missing = [name for name in (BASE, *deciding) if not _complete(results.get(name))]
    if missing:
        return Selection((), (), (), f"not all seeds of {', '.join(missing)} are finished")
    candidates = [own.run for own in gains(results) if own.run in deciding and own.mean > 0]
    if not candidates:
        return Selection((), (), (), "no ingredient is better than the base")
    kept, refused, trained = candidates[:1], list[str](), 0
    best = _mean(results[candidates[0]])
    numbers = {parts: number for number, parts in enumerate(STEPS[scale], 1)}
    for candidate in candidates[1:]:
        if any(set(INGREDIENTS[candidate].families) & set(INGREDIENTS[name].families) for name in kept):
            continue
        if trained == MOST_STEPS:
            return Selection(tuple(kept), tuple(refused), (), f"{MOST_STEPS} steps are trained")
        step = (*kept, candidate)
        result = results.get(f"step_{numbers[step]}") if step in numbers else None
        if not _complete(result):
            return Selection(tuple(kept), tuple(refused), step, "")
        assert result is not None
        trained += 1
        if _mean(result) >= best + MARGIN:
            kept, best = [*kept, candidate], _mean(result)
        else:
            refused = [*refused, candidate]
    return Selection(tuple(kept), tuple(refused), (), "no candidate is left")


def _complete(result: Result | None) -> bool:
    return result is not None and set(SEEDS) <= set(result.seeds)


def _mean(result: Result) -> float:
    """The mean top-1 of the protocol's seeds, rounded so that a margin is no question of the last bit."""
    hits = result.hits[[result.seeds.index(seed) for seed in SEEDS]]
    return round(float(hits.mean()), 9)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the final comparison says of a hypothesis.

    Attributes:
      name, claim: of it.
      gain: of top-1 on the test images; None if it is not run.
      corrected: its p value by Holm's method, or None.
      fewer: (share of the second row's errors that the first avoids, ends of the 95% interval); None if not run.
    """

    name: str
    claim: str
    gain: Gain | None
    corrected: float | None
    fewer: tuple[float, float, float] | None


def outcomes(results: Mapping[str, Result]) -> list[Outcome]:
    """The hypotheses of the final comparison, tested with all seeds of the protocol or not at all.

    The interval of the share of errors is that of the difference over the second row's mean errors, which are taken as
    they are.
    """
    planned = [(f"T{number}", f"{_CLAIM}{words}", *pair) for number, (words, *pair) in enumerate(_PAIRS, 1)]
    found = [gain(results[own], results[of]) if own in results and of in results else None for *_, own, of in planned]
    whole = [own.difference.p_value if own and own.difference and own.seeds == SEEDS else None for own in found]
    decided = []
    for (name, claim, _, other), own, corrected in zip(planned, found, holm(whole), strict=True):
        fewer = None
        if own:
            hits = results[other].hits[[results[other].seeds.index(seed) for seed in own.seeds]]
            errors = max(1 - float(hits.mean()), 1e-12)
            low, high = own.difference.interval() if own.difference else (math.nan, math.nan)
            fewer = own.mean / errors, low / errors, high / errors
        decided.append(Outcome(name, claim, own, corrected, fewer))
    return decided


def verdict(outcome: Outcome) -> str:
    """What an outcome allows to say, in words."""
    if outcome.gain is None:
        return "not run"
    if outcome.corrected is None:
        return "undecided"
    assert outcome.fewer is not None
    if outcome.corrected >= ALPHA:
        return "undecided"
    return "yes" if outcome.gain.mean > 0 else "no, the reverse"
