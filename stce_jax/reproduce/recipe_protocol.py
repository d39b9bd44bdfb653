"""The protocol of the search for a recipe (docs/recipe.md) as code: gains, the forward selection, the final comparison.

Whoever changes what is trained or decided here makes another version of it.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from stce_jax.analysis.crossed import Crossed, crossed_mean, holm
from stce_jax.configs.tables._recipe_steps import FIRST
from stce_jax.configs.tables.recipe import BASE, INGREDIENTS, SECOND, added, row_of
from stce_jax.reproduce.results import Result

VERSION, EARLIER = 3, (1, 2)  # of earlier ones the rows are as they were, and their results count
SEARCH, TEST = "recipe", "recipe_test"
TABLES = (SEARCH, TEST)
SEEDS = (0, 1, 2)  # of every row, in the search and in the final comparison
MARGIN = 0.005  # of top-1 on the images held out: what an ingredient must add to the recipe so far
MOST_STEPS = 8  # that are trained in a round
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
      refused: those whose row did not add `MARGIN`, of both rounds.
      next: the recipe to be trained next; () if there is none.
      why: why there is none, in words; "" if there is one.
      first: what the first round gave; () if it is not finished.
    """

    kept: tuple[str, ...]
    refused: tuple[str, ...]
    next: tuple[str, ...]
    why: str
    first: tuple[str, ...] = ()


def select(results: Mapping[str, Result], scale: str) -> Selection:
    """The forward selection by what is finished: which ingredients are kept, and which step comes next.

    In the first round candidates are the deciding ingredients with a gain over the base above 0, largest first. The
    first is kept as it is, for its row is trained already. Each further one that shares no family with what is kept is
    added in a row of its own, and kept if that row's mean top-1 is at least `MARGIN` above that of the recipe so far.
    In the second round the base is the recipe of the first: the candidates are `SECOND`, each in a row on top of that
    recipe, whose ingredients of its family it replaces; the first of them needs the margin as well.

    Args:
      results: {run: its result}, of one scale; of steps as `STEPS` numbers them.
      scale: of them.
    """
    deciding = [name for name, ingredient in INGREDIENTS.items() if ingredient.decides]
    if missing := _missing(results, (BASE, *deciding)):
        return Selection((), (), (), missing)
    candidates = [own.run for own in gains(results) if own.run in deciding and own.mean > 0]
    if not candidates:
        return Selection((), (), (), "no ingredient is better than the base")
    first = _forward(results, scale, tuple(candidates[:1]), candidates[0], candidates[1:])
    if first.next:
        return first
    recipe = first.kept
    first = dataclasses.replace(first, first=recipe)
    if FIRST[scale] != recipe:
        return first
    if missing := _missing(results, [f"second_{name}" for name in SECOND]):
        return dataclasses.replace(first, why=missing)
    before = results[row_of(recipe, scale)]
    gained = {name: own.mean for name in SECOND if (own := gain(results[f"second_{name}"], before))}
    candidates = sorted((name for name in gained if gained[name] > 0), key=lambda name: -gained[name])
    if not candidates or gained[candidates[0]] < MARGIN:
        return dataclasses.replace(first, why="nothing adds the margin to the recipe of the first round")
    second = _forward(results, scale, added(recipe, candidates[0]), f"second_{candidates[0]}", candidates[1:])
    return dataclasses.replace(second, refused=first.refused + second.refused, first=recipe)


def _forward(
    results: Mapping[str, Result], scale: str, recipe: tuple[str, ...], run: str, candidates: Sequence[str]
) -> Selection:
    """Adds candidates one by one to a recipe that is trained as `run` and ends with the first candidate."""
    kept, refused, trained = recipe, tuple[str, ...](), 0
    best, taken = _mean(results[run]), [recipe[-1]]
    for candidate in candidates:
        if any(set(INGREDIENTS[candidate].families) & set(INGREDIENTS[name].families) for name in taken):
            continue
        if trained == MOST_STEPS:
            return Selection(kept, refused, (), f"{MOST_STEPS} steps are trained")
        step = added(kept, candidate)
        result = results.get(row_of(step, scale))
        if not _complete(result):
            return Selection(kept, refused, step, "")
        assert result is not None
        trained += 1
        if _mean(result) >= best + MARGIN:
            kept, best = step, _mean(result)
            taken.append(candidate)
        else:
            refused = (*refused, candidate)
    return Selection(kept, refused, (), "no candidate is left")


def _missing(results: Mapping[str, Result], runs: Sequence[str]) -> str:
    """Which of these rows lack a seed, in words; "" if none does."""
    missing = [run for run in runs if not _complete(results.get(run))]
    return f"not all seeds of {', '.join(missing)} are finished" if missing else ""


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
