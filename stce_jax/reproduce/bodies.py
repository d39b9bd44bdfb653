"""What the report of the study "bodies" has of its own: what super tokens save before each body, what is published.

The rows are those of `configs/tables/bodies.py`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stce_jax.reproduce.accuracies import accuracy_blocks, percent
from stce_jax.reproduce.cells import Row
from stce_jax.reproduce.costs import NONE, Count, cost_rows, count_embedding, count_row, papers_row
from stce_jax.reproduce.documents import Block, bullets, heading, paragraph, table
from stce_jax.reproduce.kept_folders import TestImages, results_of
from stce_jax.reproduce.results import Result, differences, progress

TABLE = "bodies"
DECIDING = "Swin, CvT, CMT and MobileViT"
OWN, SUPER_TOKENS = "own", "stce"
# Of the bodies' papers and repositories: ImageNet-1k at 224 pixels (MobileViT 256), top-1 in percent, millions of
# parameters, 10^9 multiply-adds.
PUBLISHED = (
    ("Swin-T", 81.3, 28.3, 4.5),
    ("CvT-13", 81.6, 20.0, 4.5),
    ("Focal-T", 82.2, 28.9, 4.9),
    ("Focal-T, convolutional embedding", 82.7, 30.8, 5.2),
    ("CMT-S", 83.5, 26.3, 4.0),
    ("MobileViT-S", 78.4, 5.6, 1.8),
    ("DAT-T", 82.0, 28.3, 4.6),
    ("DAT-T++", 83.9, None, None),
    ("DeiT-S", 79.9, 22.1, 4.6),
)


def study_blocks(
    runs: Sequence[Mapping[str, Any]], images: TestImages | None, scale: str, seeds: Sequence[int], folder: Path
) -> list[Block]:
    """All blocks of the report of one scale that kept results give: no speeds of models in turn.

    Args:
      runs: of `read_folder`.
      images: of `read_images`, if it is there.
      scale: of the runs.
      seeds: that are planned; runs of others count, too.
      folder: for figures; not used.
    """
    del folder
    results = results_of(TABLE, runs, scale, seeds)
    blocks = [paragraph(progress(results, DECIDING))]
    finished = [result for result in results if result.seeds]
    if not finished:
        return blocks
    classes, rows = len(images.class_ids) if images else 10, {result.row.run: result.row for result in finished}
    costs = cost_rows(finished, [], lambda run: count_row(rows[run], classes))
    places = sorted({run["place"] for run in runs if run["place"]})
    return [
        *blocks,
        bullets(answers(finished)),
        *accuracy_blocks(finished),
        heading("Cost", level=3),
        table(costs),
        paragraph(f"Computed on: {'; '.join(places)}."),
    ]


def answers(results: Sequence[Result]) -> list[str]:
    """A sentence for each body of which super tokens and something else are finished, in points of top-1."""
    found: dict[str, list[str]] = {}
    for pair in differences(results):
        body, _, second = pair.second.label.partition(", ")
        kind = pair.first.label.partition(", ")[2]
        words = f"{kind} less {second} {percent(pair.over_seeds, '+')} ({len(pair.mcnemar)} seeds)"
        found.setdefault(body, []).append(words.replace("(1 seeds)", "(one seed)"))
    return [f"{body}: {'; '.join(own)}." for body, own in found.items()]


def embedding_blocks(results: Sequence[Result]) -> list[Block]:
    """What stands first: for which bodies the paper's saving holds, and the counts at the paper's size."""
    rows = {result.row.run: result.row for result in results}
    pairs = {run.removesuffix(f"_{OWN}"): run for run in rows if run.endswith(f"_{OWN}")}
    lines: list[dict[str, str]] = []
    fewer: list[str] = []
    more: list[str] = []
    for body in pairs:
        if f"{body}_{SUPER_TOKENS}" not in rows:
            continue
        own, ours = (embedding_costs(rows[f"{body}_{kind}"]) for kind in (OWN, SUPER_TOKENS))
        name = rows[pairs[body]].label.partition(",")[0]
        ratio = ours["multiply_adds"] / own["multiply_adds"]
        saving = f"{name} ({ours['parameters']:,} for {own['parameters']:,} parameters, {ratio:.1f} times the work)"
        (fewer if ours["parameters"] < own["parameters"] else more).append(saving)
        lines.append(
            {
                "body": name,
                "own embedding, parameters": f"{own['parameters']:,}",
                "multiply-adds": f"{own['multiply_adds'] / 1e6:,.1f}M",
                "super tokens, parameters": f"{ours['parameters']:,}",
                "their multiply-adds": f"{ours['multiply_adds'] / 1e6:,.1f}M",
            }
        )
    if not lines:
        return []
    texts = []
    if more:
        texts.append(
            "The paper's saving of parameters does not carry over to bodies whose own embedding is a small one: super "
            f"tokens have more before {', '.join(more)}."
        )
    if fewer:
        texts.append(f"They have fewer before {', '.join(fewer)}.")
    return [
        paragraph(" ".join(texts)),
        heading("Embeddings alone, at the paper's size", level=3),
        table(lines),
        paragraph(
            "Without the body's own LayerNorm behind them. Multiply-adds are of convolutions and linear "
            "layers, and of the clustering 2 x 9 n C T for n places of C channels and T iterations."
        ),
    ]


def body_blocks(
    results: Sequence[Result], speed: Sequence[Mapping[str, Any]], workdir: Path, count: Count
) -> list[Block]:
    """The blocks behind the accuracies and differences."""
    del workdir
    return [
        paragraph(progress(results, DECIDING)),
        heading("Cost", level=3),
        table(cost_rows(results, speed, count)),
        heading("Published figures", level=3),
        paragraph("ImageNet-1k at 224 pixels (MobileViT 256), each body by its own recipe, as its authors print them."),
        table([_published(*entry) for entry in PUBLISHED]),
    ]


def _published(name: str, top1: float, parameters: float | None, cost: float | None) -> dict[str, str]:
    return {
        "published": name,
        "top-1 %": f"{top1:g}",
        "parameters": NONE if parameters is None else f"{parameters:g}M",
        "multiply-adds": NONE if cost is None else f"{cost:g}G",
    }


def embedding_costs(row: Row) -> dict[str, int]:
    """{"parameters", "multiply_adds"} of the embedding of a row at the paper's size."""
    return count_embedding(papers_row(row).config())
