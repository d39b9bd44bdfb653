"""The report of a sweep: the paper's figures beside ours, with intervals, differences, costs and every command."""

import dataclasses
import datetime
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stce_jax.analysis.costs import count_parameters
from stce_jax.analysis.curves import curves
from stce_jax.data import catalog
from stce_jax.paths import write_text
from stce_jax.reproduce import documents
from stce_jax.reproduce.accuracies import accuracy_blocks
from stce_jax.reproduce.bodies import body_blocks, embedding_blocks
from stce_jax.reproduce.cells import TABLES, TRAINED, Row, load_rows
from stce_jax.reproduce.collecting import BLOCKS, sweep_blocks
from stce_jax.reproduce.costs import Count, cost_rows, count_row, how_timed, parameters
from stce_jax.reproduce.documents import Block, bullets, commands, figure, heading, paragraph, table
from stce_jax.reproduce.notes import NOTES, SCALES, TITLES
from stce_jax.reproduce.reductions import count_reduced, reduction_blocks
from stce_jax.reproduce.results import NOT_FINISHED, Result, read_result
from stce_jax.workdir import config as configuration

FIGURE3 = ("patch", "conv", "stce")


class Study(NamedTuple):
    """What the report of a study has of its own.

    Attributes:
      costs: function (row, classes) -> what a row costs.
      opening: function of the results -> blocks before the accuracies.
      blocks: function (results, speed, workdir, count of a run) -> blocks behind them.
    """

    costs: Callable[[Row, int], Mapping[str, Any]]
    opening: Callable[[Sequence[Result]], list[Block]]
    blocks: Callable[..., list[Block]]


STUDY_PARTS = {
    "reductions": Study(count_reduced, lambda results: [], reduction_blocks),
    "bodies": Study(count_row, embedding_blocks, body_blocks),
}
Speeds = Mapping[str, Sequence[Mapping[str, Any]]]  # {table: rows of `stce benchmark`}


def write_report(
    workdir: Path, rows: Sequence[Row], seeds: Sequence[int], *, command: str, dataset: Any, speed: Speeds
) -> Path:
    """Writes report.md, report.html and the figures into a sweep's workdir.

    Args:
      workdir: absolute path.
      rows: of `load_rows`, of one table or more.
      seeds: of the runs.
      command: the `stce reproduce` command, in words.
      dataset: that the runs are trained on; None if no row is trained.
      speed: {table: rows of `stce benchmark`, their "model" the name of a run}.

    Returns:
      Path of report.md.
    """
    results = {row.run: read_result(row, seeds, workdir) for row in rows if row.table in TRAINED}
    count = functools.cache(lambda run: _count(results[run].row, len(dataset.class_names)))  # tables share runs
    names = list(dict.fromkeys(row.table for row in rows))
    title = "The paper's tables, reproduced" if set(names) <= set(TABLES) else TITLES[names[0]]
    blocks = [heading(title, level=1), *_opening(rows, results, seeds, command, dataset)]
    for name in names:
        of_table = [row for row in rows if row.table == name]
        if TITLES[name] != title:
            blocks.append(heading(TITLES[name]))
        if name == "table1":
            blocks += _embeddings(of_table)
        else:
            own = [dataclasses.replace(results[row.run], row=row) for row in of_table]
            if name in BLOCKS and name not in STUDY_PARTS:  # whose tables below say the same
                blocks += sweep_blocks(workdir, dataset, seeds, name)
            blocks += _table(name, own, speed.get(name, []), workdir, count)
    blocks += _closing(rows, results)
    report = workdir / "report.md"
    write_text(report, documents.to_markdown(blocks))
    write_text(report.with_suffix(".html"), documents.to_html(blocks, title))
    return report


def _opening(
    rows: Sequence[Row], results: Mapping[str, Result], seeds: Sequence[int], command: str, dataset: Any
) -> list[Block]:
    scale = rows[0].scale
    blocks = [paragraph(f"`{command}`, written {datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %Z}.")]
    if not results:
        return blocks
    config = rows[0].config()
    done, planned = sum(len(result.seeds) for result in results.values()), len(results) * len(seeds)
    places = sorted({record["place"] for result in results.values() for record in result.records.values()})
    counts = {split: len(getattr(dataset, split)) for split in catalog.SPLITS}
    blocks.append(
        bullets(
            [
                f"Scale `{scale}`: {_scale(rows[0])}{_changed(rows[0])}.",
                f"Images: `{config.dataset}`, {len(dataset.class_names)} classes, {counts['train']:,} for training, "
                f"{counts['val']:,} {'held out of them' if config.holdout else 'for testing'}, {config.image_size} "
                f"pixels; fingerprint {dataset.fingerprint[:12]}.",
                f"Seeds {', '.join(map(str, seeds))}: {done} of {planned} runs are finished.",
                f"Computed on: {'; '.join(places) or 'nothing yet'}.",
                "Every accuracy is the last epoch's, of the raw weights, as DeiT's code has it (the paper does not "
                'say). There is no third split: "best epoch" is chosen on the test images, is therefore too high, and '
                "no headline.",
                "Intervals are 95%: over seeds by Student's t. What the number of test images leaves open of one "
                "accuracy is Wilson's interval; of a difference, the paired bootstrap of the images, the seeds "
                "averaged. p values are McNemar's exact ones, a seed each.",
            ]
        )
    )
    failed = [
        f"`{result.row.run}` seed {seed}: {why}"
        for result in results.values()
        for seed, why in result.unfinished.items()
        if why != NOT_FINISHED
    ]
    return [*blocks, paragraph("Failed:"), bullets(failed)] if failed else blocks


def _scale(row: Row) -> str:
    return SCALES.get(f"{row.table} {row.scale}", SCALES[row.scale])


def _changed(row: Row) -> str:
    return f", with `{' '.join(row.more)}` for every row" if row.more else ""


def _embeddings(rows: Sequence[Row]) -> list[Block]:
    """Table 1: counts at the paper's size, whatever the scale."""
    lines = []
    for row in load_rows("table1", "paper"):
        if row.run in {own.run for own in rows}:
            ours = count_parameters(parameters(row)["embedding"])
            printed = row.paper["embedding_parameters"]
            ratio = ours / (1e6 * float(printed.removesuffix("M")))
            lines.append(
                {"embedding": row.label, "paper": printed, "ours": f"{ours:,}", "ours / paper": f"{ratio:.2f}"}
            )
    return [table(lines), bullets(NOTES["table1"])]


def _table(
    name: str, results: Sequence[Result], speed: Sequence[Mapping[str, Any]], workdir: Path, count: Count
) -> list[Block]:
    study = STUDY_PARTS.get(name)
    blocks = [*(study.opening(results) if study else []), *accuracy_blocks(results)]
    if name == "table6":
        blocks += _order(results)
    groups = {result.row.label: result.curves for result in results if result.row.run in FIGURE3 and result.curves}
    if name == "table6" and groups:
        caption = "Figure 3: loss and top-1 over epochs, mean over seeds, the band from their min to their max."
        blocks.append(figure(curves(groups, workdir / "figure3.png"), caption))
    if study:
        blocks += study.blocks(results, speed, workdir, count)
    else:
        blocks += [heading("Cost", level=3), table(cost_rows(results, speed, count))]
    return [*blocks, *how_timed(results, speed), bullets(NOTES[name])]


def _count(row: Row, classes: int) -> Mapping[str, Any]:
    return STUDY_PARTS[row.table].costs(row, classes) if row.table in STUDY_PARTS else count_row(row, classes)


def _order(results: Sequence[Result]) -> list[Block]:
    """Whether the paper's order of the embeddings holds, by the seeds that all of them have."""
    compared = [result for result in results if result.row.run in FIGURE3]
    seeds = set.intersection(*(set(result.seeds) for result in compared)) if compared else set()
    if len(compared) < len(FIGURE3) or not seeds:
        return []
    sums = {of.row.run: sum(of.top1[of.seeds.index(seed)] for seed in seeds) for of in compared}
    found = sorted(sums, key=sums.__getitem__, reverse=True)
    verb = "holds" if found == ["stce", "conv", "patch"] else "does not hold"
    order = " > ".join(found)
    return [paragraph(f"The paper's order of the means, stce > conv > patch, {verb} here: {order}.")]


def _closing(rows: Sequence[Row], results: Mapping[str, Result]) -> list[Block]:
    """What differs from the paper, what cannot be reconciled, and the commands."""
    blocks = [heading("What differs from the paper")]
    row = rows[0]
    if f"{row.table} {row.scale}" in SCALES:
        blocks.append(paragraph("This is no experiment of the paper; it has another question and other recipes."))
    elif row.scale != "paper":
        papers = next(iter(load_rows("table6", "paper"))).config()
        own = next(iter(load_rows("table6", row.scale, row.more))).config()
        blocks += [
            paragraph(
                "This is the paper's experiment scaled down: its accuracies are not the paper's, and only their order "
                "and differences can be held against it. Of the config of Table 6's first row this differs (the "
                "paper's recipe -> here):"
            ),
            bullets(f"`{line}`" for line in configuration.differences(papers, own)),
        ]
    elif row.more:
        blocks += [paragraph(f"Changed for every row, so that accuracies are not the paper's: `{' '.join(row.more)}`.")]
    blocks += [paragraph("How the paper was read, where it leaves things open; figures are those of its own scale:")]
    blocks += [bullets(NOTES["decisions"]), heading("Figures of the paper that cannot be reconciled")]
    blocks += [bullets(NOTES["contradictions"]), heading("Commands")]
    for result in results.values():
        for seed, record in result.records.items():
            title = f"`{result.row.run}`, seed {seed}: {record['seconds'] / 60:.1f} minutes on {record['place']}"
            blocks.append(commands(title, record["commands"]))
    return blocks
