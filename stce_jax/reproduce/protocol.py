"""The protocol of the study "clustering" (docs/study.md) as code: hypotheses, looks, and what decides them.

Whoever changes what is trained or decided here makes another version of it.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from stce_jax.analysis.crossed import Crossed, crossed_mean, holm
from stce_jax.reproduce.cells import load_rows
from stce_jax.reproduce.results import Result

VERSION = 1
TABLE = "clustering"
ALPHA = 0.025  # of each of two looks
LOOKS = (3, 5)  # seeds of the first and the second
MARGIN = 0.01  # what a difference must reach to matter, a fraction of the images
YES, NO, UNDECIDED, NOT_RUN = "yes", "no", "undecided", "not run"
FAMILIES = ("deciding", "controls", "when")


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """That a sum of top-1 accuracies, each with its sign, is above 0.

    Attributes:
      name: as docs/study.md has it.
      family: of FAMILIES, for the correction.
      claim: what it says, the rest of a sentence that begins "Super tokens", or another subject.
      signs: {run: 1 or -1}.
    """

    name: str
    family: str
    claim: str
    signs: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Decision:
    """What the runs that are there say of a hypothesis.

    Attributes:
      hypothesis: it.
      seeds: those of the look.
      difference: over these seeds and all images, fractions; None with fewer than two seeds, for it has no error then.
      mean: the difference's mean; None without a seed.
      corrected: its p value by Holm's method within the family, or None.
      verdict: YES, NO, UNDECIDED or NOT_RUN.
    """

    hypothesis: Hypothesis
    seeds: tuple[int, ...]
    difference: Crossed | None
    mean: float | None
    corrected: float | None
    verdict: str


def hypotheses(scale: str) -> list[Hypothesis]:
    """All of them, in the order of docs/study.md; at `scale`, which decides what the other mixing is."""
    mixed = load_rows(TABLE, scale)[0].config().augment.mixup > 0
    other = "without mixup and CutMix" if mixed else "with mixup and CutMix"

    def less(name: str, family: str, claim: str, first: str, second: str) -> Hypothesis:
        return Hypothesis(name, family, claim, {first: 1, second: -1})

    better = "Super tokens are better than"
    gain = "Clustering is better than average pooling"
    found = [
        less("P1", "deciding", f"{better} patches", "stce", "patch"),
        less("P2", "deciding", f"{better} the convolution stem", "stce", "conv"),
        less("P3", "deciding", gain, "stce", "pooling"),
        less("P4", "deciding", "Clustering is better than a strided convolution", "stce", "strided"),
        less("C1", "controls", f"{better} a stem with as many parameters", "stce", "conv_parameters"),
        less("C2", "controls", f"{better} a stem with as many multiply-adds", "stce", "conv_multiply_adds"),
        less("C3", "controls", "Clustering is better than max pooling", "stce", "max_pooling"),
        less("C4", "controls", "Three iterations are better than one", "stce", "iterations_1"),
        less("C5", "controls", "Three iterations are better than two", "stce", "iterations_2"),
        less("C6", "controls", "Gradients through the affinities help", "differentiable", "stce"),
        less("C7", "controls", "Masking neighbours beyond the border helps", "border_mask", "stce"),
    ]
    conditions = {
        "_other_mixing": other,
        "_fewer": "with a quarter of the tokens",
        "_fewer_other_mixing": f"with a quarter of the tokens, {other}",
        "_more": "with four times the tokens",
        "_more_other_mixing": f"with four times the tokens, {other}",
    }
    for number, (condition, words) in enumerate(conditions.items(), 1):
        found.append(less(f"W{number}", "when", f"{gain} {words}", f"stce{condition}", f"pooling{condition}"))
    tokens = {"stce_more": 1, "pooling_more": -1, "stce_fewer": -1, "pooling_fewer": 1}
    found.append(Hypothesis("W6", "when", "Clustering gains more the more tokens there are", tokens))
    sign = -1 if mixed else 1
    mixing = {"stce_other_mixing": sign, "pooling_other_mixing": -sign, "stce": -sign, "pooling": sign}
    return [*found, Hypothesis("W7", "when", "Clustering gains more under mixup and CutMix", mixing)]


def decide(results: Mapping[str, Result], scale: str) -> list[Decision]:
    """What the finished runs say of each hypothesis.

    Args:
      results: {run: its result}, of runs on the same test images; those that miss are not run.
      scale: of them.
    """
    planned = hypotheses(scale)
    measured = [_measured(hypothesis, results) for hypothesis in planned]
    decisions = []
    for family in FAMILIES:
        own = [place for place, hypothesis in enumerate(planned) if hypothesis.family == family]
        # With fewer seeds than the first look has, nothing is decided, and nothing counts as looked at.
        p_values = [
            difference.p_value if difference and len(seeds) >= LOOKS[0] else None
            for seeds, difference, _ in (measured[place] for place in own)
        ]
        for place, corrected in zip(own, holm(p_values), strict=True):
            seeds, difference, mean = measured[place]
            verdict = NOT_RUN if mean is None else _verdict(difference, corrected, len(own))
            decisions.append(Decision(planned[place], seeds, difference, mean, corrected, verdict))
    return decisions


def look(seeds: Sequence[int]) -> tuple[int, ...]:
    """The seeds of the look that these allow: the first three until there are five, all of them from then on."""
    ordered = tuple(sorted(seeds))
    return ordered[: LOOKS[0]] if LOOKS[0] <= len(ordered) < LOOKS[1] else ordered


def _measured(
    hypothesis: Hypothesis, results: Mapping[str, Result]
) -> tuple[tuple[int, ...], Crossed | None, float | None]:
    """(seeds of the look, the difference, its mean)."""
    parts = [(sign, results[run]) for run, sign in hypothesis.signs.items() if run in results]
    if len(parts) < len(hypothesis.signs):
        return (), None, None
    seeds = look(list(set.intersection(*(set(result.seeds) for _, result in parts))))
    if not seeds:
        return (), None, None
    values = sum(
        sign * result.hits[[result.seeds.index(seed) for seed in seeds]].astype(np.float64) for sign, result in parts
    )
    values = np.asarray(values)
    return seeds, crossed_mean(values) if len(seeds) > 1 else None, float(values.mean())


def _verdict(difference: Crossed | None, corrected: float | None, family: int) -> str:
    """What docs/study.md makes of a difference; `family` is how many hypotheses there are in its family."""
    if difference is None or corrected is None:
        return UNDECIDED
    if corrected < ALPHA:
        return YES if difference.mean > 0 else NO
    _, high = difference.interval(1 - ALPHA / family)
    return NO if high < MARGIN else UNDECIDED


def sentence(decision: Decision) -> str:
    """A decision as a sentence that can be quoted."""
    claim, mean = decision.hypothesis.claim, decision.mean
    if mean is None:
        return f"{claim}: not run yet."
    seeds = f"{len(decision.seeds)} seed{'s' * (len(decision.seeds) != 1)}"
    if decision.difference is None or decision.corrected is None:
        return f"{claim}: undecided, {100 * mean:+.2f} points with {seeds}; the protocol wants {LOOKS[0]} at least."
    low, high = decision.difference.interval()
    numbers = f"{100 * mean:+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}], {seeds}, p {p_text(decision.corrected)}"
    words = decision.verdict
    if decision.verdict == NO:
        words = "no, the reverse" if decision.corrected < ALPHA else f"no, not by {100 * MARGIN:g} point"
    return f"{claim}: {words} ({numbers} corrected)."


def p_text(value: float) -> str:
    """A p value as it is printed."""
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def is_finite(decision: Decision) -> bool:
    """Whether a decision has an interval that can be drawn."""
    return decision.difference is not None and math.isfinite(decision.difference.error)
