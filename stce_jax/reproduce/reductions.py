"""What the report of the study "reductions" has of its own: tokens, both costs, the figure, what is published.

The rows are those of `configs/tables/reductions.py`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stce_jax.analysis.costs import count_reduction
from stce_jax.analysis.tradeoff import Point, tradeoff
from stce_jax.reproduce.cells import Row
from stce_jax.reproduce.costs import Count, mean_text, speed_text
from stce_jax.reproduce.documents import Block, figure, heading, paragraph, table
from stce_jax.reproduce.results import Result, progress
from stce_jax.training import assemble as runs

WHOLE = "all tokens"
# Of the methods' own repositories: DeiT-S on ImageNet-1k at 224 pixels, top-1 in percent and 10^9 multiply-adds.
PUBLISHED = (
    ("DeiT-S, all tokens", 79.8, 4.6),
    ("EViT 0.9", 79.8, 4.0),
    ("EViT 0.8", 79.8, 3.5),
    ("EViT 0.7", 79.5, 3.0),
    ("EViT 0.6", 78.9, 2.6),
    ("EViT 0.5", 78.5, 2.3),
    ("EViT 0.9, not fused", 79.9, 4.0),
    ("EViT 0.8, not fused", 79.7, 3.5),
    ("EViT 0.7, not fused", 79.4, 3.0),
    ("EViT 0.6, not fused", 79.1, 2.6),
    ("EViT 0.5, not fused", 78.4, 2.3),
    ("ToMe, r = 13 in every block, trained", 79.36, 2.7),
)


def count_reduced(row: Row, classes: int) -> dict[str, Any]:
    """{"tokens": image tokens after each block, "all_tokens", "reduction": see `count_reduction`} of a row's model."""
    config = row.config()
    model: Any = runs.build_model(config, classes)
    tokens = model.token_counts(config.image_size, config.image_size)
    return {"tokens": tokens, **count_reduction(model, config.image_size)}


def reduction_blocks(
    results: Sequence[Result], speed: Sequence[Mapping[str, Any]], workdir: Path, count: Count
) -> list[Block]:
    """The blocks behind the accuracies and differences."""
    blocks = [
        paragraph(progress(results, "EViT, ToMe, DPC-KNN and ATS at 0.7 and 0.5, and all tokens")),
        heading("Tokens and cost", level=3),
        table([_cost(result, speed, count) for result in results]),
    ]
    if panels := _panels(results, count):
        path = tradeoff(panels, workdir / "reductions.png", cost="multiply-adds (millions)", whole=WHOLE)
        blocks.append(figure(path, "Accuracy over multiply-adds; bars are 95% intervals over seeds."))
    published = [
        {"published": name, "top-1 %": f"{top1:g}", "multiply-adds": f"{cost:g}G"} for name, top1, cost in PUBLISHED
    ]
    return [
        *blocks,
        heading("Published figures", level=3),
        paragraph(
            "DeiT-S on ImageNet-1k at 224 pixels, as the methods' repositories print them. No row above has this "
            "setting: they are here for the order of the methods, not for their accuracies."
        ),
        table(published),
    ]


def _cost(result: Result, speed: Sequence[Mapping[str, Any]], count: Count) -> dict[str, str]:
    counted: Mapping[str, Any] = count(result.row.run)
    stages = list(dict.fromkeys(counted["tokens"]))
    return {
        "row": result.row.label,
        "image tokens": ", ".join(map(str, stages)),
        "multiply-adds, all tokens": f"{counted['all_tokens'] / 1e6:,.1f}M",
        "the method's own": f"{counted['reduction'] / 1e6:,.2f}M",
        **{f"{what}, images/s": speed_text(result.row.run, speed, what) for what in ("inference", "training")},
        "minutes a run": mean_text(result.seconds, unit=60, digits=1),
    }


def _panels(results: Sequence[Result], count: Count) -> dict[str, dict[str, list[Point]]]:
    """{body: {method: points}} of the rows that have a finished run; labels are "BODY, METHOD, RATE"."""
    panels: dict[str, dict[str, list[Point]]] = {}
    for result in results:
        interval = result.interval()
        if interval is None:
            continue
        body, method = result.row.label.split(", ")[:2]
        counted: Mapping[str, Any] = count(result.row.run)
        cost = (counted["all_tokens"] + counted["reduction"]) / 1e6
        panels.setdefault(body, {}).setdefault(method, []).append(Point(cost, *interval))
    return panels
