"""The report of the study "clustering": what the runs decide, in sentences first, then tables and figures.

Made of kept results alone, see `kept`: so it is the same in the workdir of a sweep and in docs/study.md.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stce_jax.analysis.costs import count_model
from stce_jax.analysis.crossed import crossed_mean
from stce_jax.analysis.curves import curves, over_epochs
from stce_jax.analysis.differences import Line, forest
from stce_jax.reproduce.costs import NONE, count_embedding, mean_text
from stce_jax.reproduce.documents import Block, bullets, figure, heading, paragraph, table
from stce_jax.reproduce.kept_folders import TestImages, results_of
from stce_jax.reproduce.protocol import (
    ALPHA,
    FAMILIES,
    LOOKS,
    MARGIN,
    NOT_RUN,
    TABLE,
    UNDECIDED,
    VERSION,
    YES,
    Decision,
    decide,
    is_finite,
    p_text,
    sentence,
)
from stce_jax.reproduce.results import Result, progress
from stce_jax.training import assemble as runs_of

DECIDING = "patches, convolution stem, super tokens, average pooling, strided convolution"
THIRDS = ("few edges", "some", "many")
OTHERS = ("pooling", "strided", "conv")  # whose errors are compared with the super tokens', image by image


def study_blocks(
    runs: Sequence[Mapping[str, Any]], images: TestImages | None, scale: str, seeds: Sequence[int], folder: Path
) -> list[Block]:
    """All blocks of the report of one scale.

    Args:
      runs: of `read_folder`.
      images: of `read_images`, if it is there.
      scale: of the runs.
      seeds: that are planned; runs of others count, too.
      folder: where figures are written, differences.png, curves.png and entropy.png.
    """
    results = results_of(TABLE, runs, scale, seeds)
    by_run = {result.row.run: result for result in results if result.seeds}
    decisions = decide(by_run, scale)
    blocks = [paragraph(f"{progress(results, DECIDING)} Version {VERSION} of the protocol, scale `{scale}`.")]
    if not by_run:
        return blocks
    blocks += [bullets(answers(decisions)), *_hypotheses(decisions, folder), *_accuracies(results, runs, images)]
    deciding = {result.row.label: result.curves for result in results if result.row.decides and result.seeds}
    if deciding:
        blocks.append(figure(curves(deciding, folder / "curves.png"), "Loss and top-1 over epochs, rows that decide."))
    blocks += _clusters(runs, by_run, folder)
    if images:
        blocks += _errors(by_run, images)
    return [*blocks, *_open_questions(decisions)]


def answers(decisions: Sequence[Decision]) -> list[str]:
    """Five sentences that can be quoted: one for each hypothesis that decides, one for all others."""
    own = [sentence(decision) for decision in decisions if decision.hypothesis.family == "deciding"]
    others = [decision for decision in decisions if decision.hypothesis.family != "deciding"]
    run = [decision for decision in others if decision.verdict != NOT_RUN]
    if not run:
        return [*own, f"The {len(others)} further hypotheses are not run yet."]
    held = [decision.hypothesis.claim for decision in run if decision.verdict == YES]
    undecided = sum(decision.verdict == UNDECIDED for decision in run)
    words = f"Of the {len(others)} further hypotheses {len(run)} are run: {undecided} undecided"
    words += f", {len(run) - len(held) - undecided} no, {len(held)} yes"
    return [*own, words + (f" ({'; '.join(held)})." if held else ".")]


def _hypotheses(decisions: Sequence[Decision], folder: Path) -> list[Block]:
    lines, drawn = [], []
    for decision in decisions:
        own, found = decision.hypothesis, decision.difference
        low, high = found.interval() if found else (np.nan, np.nan)
        lines.append(
            {
                "": own.name,
                "hypothesis": own.claim,
                "points [95%]": NONE if decision.mean is None else _points(decision.mean, low, high),
                "seeds": str(len(decision.seeds) or NONE),
                "p": p_text(found.p_value) if found else NONE,
                "p, Holm": NONE if decision.corrected is None else p_text(decision.corrected),
                "verdict": decision.verdict,
            }
        )
        if found and is_finite(decision):
            label = f"{own.name}  {own.claim}"
            group = FAMILIES.index(own.family)
            drawn.append(Line(label, 100 * found.mean, 100 * low, 100 * high, group))
    blocks = [heading("Hypotheses", level=3), table(lines)]
    if drawn:
        path = forest(drawn, "points of top-1", folder / "differences.png", margin=100 * MARGIN)
        caption = "Differences with 95% intervals over seeds and images, uncorrected; dotted: what matters."
        blocks.append(figure(path, caption))
    text = (
        f"Differences paired by seed and image. A verdict is at alpha = {ALPHA:g} of the p values corrected by Holm's "
        f"method within a family ({', '.join(FAMILIES)}), with {LOOKS[0]} seeds at least."
    )
    return [*blocks, paragraph(text)]


def _accuracies(results: Sequence[Result], runs: Sequence[Mapping[str, Any]], images: TestImages | None) -> list[Block]:
    classes = len(images.class_ids) if images else 10
    lines = []
    for result in results:
        if not (interval := result.interval()):
            continue
        config = result.row.config()
        embedding, model = count_embedding(config), count_model(runs_of.build_model(config, classes), config.image_size)
        lines.append(
            {
                "row": result.row.label,
                "embedding: parameters": f"{embedding['parameters']:,}",
                "its multiply-adds": f"{embedding['multiply_adds'] / 1e6:,.1f}M",
                "model: parameters": f"{model['parameters']:,}",
                "multiply-adds": f"{model['multiply_adds'] / 1e6:,.1f}M",
                "top-1 % [95% over seeds]": _percent(*interval),
                "each seed": ", ".join(f"{100 * top1:.2f}" for top1 in result.top1),
                "minutes a run": mean_text(result.seconds, unit=60, digits=1),
            }
        )
    places = sorted({run["place"] for run in runs if run["place"]})
    text = f"{runs[0]['test_images']:,} test images. Computed on: {'; '.join(places) or 'not said'}."
    return [heading("Accuracies", level=3), table(lines), paragraph(text)]


def _clusters(runs: Sequence[Mapping[str, Any]], by_run: Mapping[str, Result], folder: Path) -> list[Block]:
    """Whether clusters follow edges, and how decided the affinities are over training."""
    lines = []
    for name, result in by_run.items():
        if own := [run["clusters"] for run in runs if run["run"] == name and run["clusters"]]:
            means = {key: float(np.mean([seen[key].mean() for seen in own])) for key in own[0]}
            values = np.array([seen["own"] - seen["other"] for seen in own])
            lines.append(
                {
                    "row": result.row.label,
                    "own clusters": f"{100 * means['own']:.1f}%",
                    "another image's": f"{100 * means['other']:.1f}%",
                    "own less another's [95%]": _over_all(values),
                    "regular cells": f"{100 * means['grid']:.1f}%",
                    "pixels at a border": f"{100 * means['covered']:.1f}%",
                }
            )
    entropies = {
        result.row.label: result.curves
        for result in by_run.values()
        if any(line.get("affinity_entropy") is not None for lines in result.curves for line in lines)
    }
    blocks: list[Block] = []
    if lines:
        text = (
            "Share of the strongest tenth of an image's gradients at a border between clusters. "
            "Clusters follow the image as far as their own image's share exceeds another's."
        )
        blocks += [heading("Do clusters follow edges?", level=3), paragraph(text), table(lines)]
    if entropies:
        path = over_epochs(entropies, "affinity_entropy", "entropy of the affinities (nats)", folder / "entropy.png")
        caption = "Entropy of the affinities over training; ln 9 = 2.20 would be no clustering, 0 a hard one."
        blocks.append(figure(path, caption))
    return blocks


def _errors(by_run: Mapping[str, Result], images: TestImages) -> list[Block]:
    """Where super tokens are right and something plain is not, by the edges of an image and by its class."""
    if "stce" not in by_run or images.edges is None:
        return []
    order = np.argsort(images.edges, kind="stable")
    groups = dict(zip(THIRDS, np.array_split(order, len(THIRDS)), strict=True))
    lines = []
    for label, places in groups.items():
        lines.append({"test images with": label, **_less_others(by_run, places)})
    blocks = [
        heading("Errors by image", level=3),
        paragraph("Super tokens less others, points [95%]; thirds of the test images by their mean gradient."),
        table(lines),
    ]
    classes = [
        {"class": f"`{class_id.replace('`', ' ')}`", **_less_others(by_run, np.flatnonzero(images.labels == label))}
        for label, class_id in enumerate(images.class_ids)
        if (images.labels == label).any()
    ]
    if len(classes) <= 20:
        blocks.append(table(classes))
    return blocks


def _less_others(by_run: Mapping[str, Result], places: np.ndarray) -> dict[str, str]:
    first = by_run["stce"]
    cells = {}
    for name in OTHERS:
        text = NONE
        if second := by_run.get(name):
            shared = [seed for seed in first.seeds if seed in second.seeds]
            own, other = (of.hits[[of.seeds.index(seed) for seed in shared]][:, places] for of in (first, second))
            if shared and len(places) > 1:
                text = _over_all(own.astype(float) - other)
        cells[f"less {name}"] = text
    return cells


def _over_all(values: np.ndarray) -> str:
    """The mean of [seeds, images] in points, with its interval if there are seeds enough for one."""
    low, high = crossed_mean(values).interval() if len(values) > 1 else (np.nan, np.nan)
    return _points(float(values.mean()), low, high)


def _open_questions(decisions: Sequence[Decision]) -> list[Block]:
    open_ones = [decision.hypothesis for decision in decisions if decision.verdict in (UNDECIDED, NOT_RUN)]
    if not open_ones:
        return []
    names = "; ".join(f"{own.name}, {own.claim[0].lower()}{own.claim[1:]}" for own in open_ones)
    return [heading("Not concluded", level=3), paragraph(f"Undecided or not run: {names}.")]


def _points(mean: float, low: float, high: float) -> str:
    return _percent(mean, low, high, "+")


def _percent(mean: float, low: float, high: float, sign: str = "") -> str:
    if np.isnan(low):
        return f"{100 * mean:{sign}.2f}"
    return f"{100 * mean:{sign}.2f} [{100 * low:{sign}.2f}, {100 * high:{sign}.2f}]"
