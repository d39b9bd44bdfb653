"""The reports of the search for a recipe and of its final comparison, made of kept results alone, see `kept`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stce_jax.analysis.curves import curves
from stce_jax.analysis.differences import Line, forest
from stce_jax.configs.tables import _recipe_times
from stce_jax.configs.tables.recipe import BASE, INGREDIENTS
from stce_jax.reproduce.costs import NONE, mean_text
from stce_jax.reproduce.documents import Block, bullets, figure, heading, paragraph, table
from stce_jax.reproduce.kept_folders import TestImages, results_of
from stce_jax.reproduce.protocol import p_text
from stce_jax.reproduce.recipe_protocol import (
    ALPHA,
    SEARCH,
    SEEDS,
    TARGETS,
    TEST,
    VERSION,
    Gain,
    Outcome,
    gain,
    gains,
    outcomes,
    select,
    verdict,
)
from stce_jax.reproduce.results import Result, progress


def search_blocks(
    runs: Sequence[Mapping[str, Any]], images: TestImages | None, scale: str, seeds: Sequence[int], folder: Path
) -> list[Block]:
    """All blocks of the report of the search at one scale.

    Args:
      runs: of `read_folder`.
      images: of `read_images`; not used.
      scale: of the runs.
      seeds: that are planned; runs of others count, too.
      folder: where figures are written, gains.png and curves.png.
    """
    del images
    by_run, blocks = _begun(SEARCH, runs, scale, seeds)
    if not by_run:
        return blocks
    blocks += [bullets(choices(by_run, scale)), heading("One change at a time", level=3)]
    found = gains(by_run)
    named = {own.run: own for own in found}
    blocks.append(table([_accuracy(by_run[run], named.get(run)) for run in _order(by_run, found)]))
    drawn = [line for own in found if (line := _line(own, INGREDIENTS[own.run].label))]
    if drawn:
        path = forest(drawn, "points of top-1 more than the base", folder / "gains.png")
        blocks.append(figure(path, "Gains with 95% intervals over seeds and images, uncorrected."))
    second = [result for run, result in by_run.items() if run.startswith("second_")]
    if second:
        rows = sorted(((result, _against(result, by_run)) for result in second), key=lambda pair: -_mean(pair[1]))
        own = [_accuracy(result, more, than="what the first round gave") for result, more in rows]
        blocks += [heading("On top of what the first round gave", level=3), table(own)]
    steps = [result for run, result in by_run.items() if run.startswith("step_")]
    if steps:
        own = [_accuracy(result, _against(result, by_run)) for result in steps]
        blocks += [heading("Forward selection", level=3), table(own)]
    text = (
        f"Of {runs[0]['test_images']:,} images held out of the training images; differences paired by seed and image, "
        f"intervals of 95%. Computed on: {_places(runs)}."
    )
    return [*blocks, paragraph(text)]


def test_blocks(
    runs: Sequence[Mapping[str, Any]], images: TestImages | None, scale: str, seeds: Sequence[int], folder: Path
) -> list[Block]:
    """All blocks of the report of the final comparison at one scale, see `search_blocks`."""
    del images
    by_run, blocks = _begun(TEST, runs, scale, seeds)
    if not by_run:
        return blocks
    found = outcomes(by_run) if scale in _recipe_times.MS else []
    lines = [
        {
            "": own.name,
            "hypothesis": own.claim,
            "points [95%]": _points(own.gain) if own.gain else NONE,
            "fewer errors [95%]": _share(own.fewer) if own.fewer else NONE,
            "seeds": str(len(own.gain.seeds)) if own.gain else NONE,
            "p, Holm": NONE if own.corrected is None else p_text(own.corrected),
            "verdict": verdict(own),
        }
        for own in found
    ]
    said = [sentence(own) for own in found[:1]] or [_beside_record(result) for result in by_run.values()]
    blocks += [bullets(said), *([table(lines)] if lines else [])]
    blocks.append(table([_accuracy(result, _against(result, by_run)) for result in by_run.values()]))
    groups = {result.row.label: result.curves for result in by_run.values() if result.row.decides}
    if groups:
        blocks.append(figure(curves(groups, folder / "curves.png"), "Loss and top-1 over epochs."))
    text = (
        f"{runs[0]['test_images']:,} test images, which no choice has seen. Verdicts are at alpha = {ALPHA:g} of p "
        f"values corrected by Holm's method, with {len(SEEDS)} seeds. Computed on: {_places(runs)}."
    )
    return [*blocks, paragraph(text)]


def choices(by_run: Mapping[str, Result], scale: str) -> list[str]:
    """What the search has chosen so far, in sentences that can be quoted."""
    found = gains(by_run)
    lines = []
    if found:
        best, worst = found[0], found[-1]
        lines.append(f"Largest gain: {INGREDIENTS[best.run].label}, {_points(best)} points, {_seeds(best)}.")
        lines.append(f"Smallest: {INGREDIENTS[worst.run].label}, {_points(worst)} points, {_seeds(worst)}.")
    selection = select(by_run, scale)
    if selection.kept:
        words = ", ".join(INGREDIENTS[name].label for name in selection.kept)
        lines.append(f"The recipe so far: {words}.")
    if selection.refused:
        lines.append(f"Refused: {', '.join(INGREDIENTS[name].label for name in selection.refused)}.")
    if selection.next:
        lines.append(f"Next: {' + '.join(INGREDIENTS[name].label for name in selection.next)}.")
    else:
        lines.append(f"No next step: {selection.why}.")
    return lines


def sentence(outcome: Outcome) -> str:
    """An outcome as a sentence that can be quoted."""
    if outcome.gain is None or outcome.fewer is None:
        return f"{outcome.claim}: not run yet."
    target, more = (f"{100 * share:g}%" for share in TARGETS)
    return (
        f"{outcome.claim}: {verdict(outcome)}, {_share(outcome.fewer)} fewer errors, {_seeds(outcome.gain)} (the "
        f"target was {target}, what would be more {more})."
    )


def _beside_record(result: Result) -> str:
    """A row that has a published figure beside it, as a sentence."""
    mean, low, high = (100 * value for value in result.over_images())
    seeds = f"{len(result.seeds)} seed{'s' * (len(result.seeds) != 1)}"
    return (
        f"{result.row.label}: top-1 {mean:.2f}% [{low:.2f}, {high:.2f}] of {result.hits.shape[1]:,} test images, "
        f"{seeds}; the record of fastai's table for as many epochs is {result.row.paper['top1']:.2f}%, of its own "
        "3,925 images."
    )


def _begun(
    name: str, runs: Sequence[Mapping[str, Any]], scale: str, seeds: Sequence[int]
) -> tuple[dict[str, Result], list[Block]]:
    """({row: its results} of a table, of those that there are; the report's first line)."""
    results = results_of(name, runs, scale, seeds)
    deciding = sum(result.row.decides for result in results)
    done = progress(results, f"{deciding} rows")
    timed = _timed(scale, [result.row.run for result in results if result.row.decides])
    first = paragraph(f"{done} Version {VERSION} of the protocol, scale `{scale}`. {timed}")
    return {result.row.run: result for result in results if result.seeds}, [first]


def _timed(scale: str, deciding: Sequence[str]) -> str:
    if scale not in _recipe_times.MS:
        return "No row is compared with another; each is trained for its epochs."
    if {run for run in deciding if not run.startswith("step_")} <= set(_recipe_times.MS[scale]):
        return "Every row trains for as long as the base, by times that were measured in turn."
    return "Times of this scale are not measured: every row has the base's epochs."


def _order(by_run: Mapping[str, Result], found: Sequence[Gain]) -> list[str]:
    """The base, then single ingredients, largest gain first."""
    return [*([BASE] if BASE in by_run else []), *(own.run for own in found)]


def _mean(own: Gain | None) -> float:
    return own.mean if own else -math.inf


def _accuracy(result: Result, own: Gain | None, than: str = "the base") -> dict[str, str]:
    interval = result.interval()
    return {
        "row": result.row.label,
        "epochs": f"{result.row.config().epochs:g}",
        "top-1 %": f"{100 * interval.mean:.2f}" if interval else NONE,
        "each seed": ", ".join(f"{100 * top1:.2f}" for top1 in result.top1),
        f"more than {than}, points [95%]": _points(own) if own else NONE,
        "minutes a run": mean_text(result.seconds, unit=60, digits=1),
    }


def _against(result: Result, by_run: Mapping[str, Result]) -> Gain | None:
    """What a row has more than the one that it is compared with, if that is there."""
    return next((gain(result, by_run[other]) for other in result.row.against if other in by_run), None)


def _line(own: Gain, label: str) -> Line | None:
    if own.difference is None or not math.isfinite(own.difference.error):
        return None
    low, high = own.difference.interval()
    return Line(label, 100 * own.mean, 100 * low, 100 * high, 0)


def _points(own: Gain) -> str:
    if own.difference is None:
        return f"{100 * own.mean:+.2f}"
    low, high = own.difference.interval()
    return f"{100 * own.mean:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def _share(fewer: tuple[float, float, float]) -> str:
    mean, low, high = (100 * value for value in fewer)
    return f"{mean:.1f}%" if math.isnan(low) else f"{mean:.1f}% [{low:.1f}, {high:.1f}]"


def _seeds(own: Gain) -> str:
    return f"{len(own.seeds)} seed{'s' * (len(own.seeds) != 1)}"


def _places(runs: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(sorted({run["place"] for run in runs if run["place"]})) or "not said"
