"""From the workdir of a sweep of a study with a protocol to the small files that are kept of it, and its report."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import stce_jax
from stce_jax.analysis.drawing import pictures
from stce_jax.analysis.files import IN_RUN, SCORES, read_predictions
from stce_jax.errors import ConfigError, DataError, StceError
from stce_jax.paths import read_json, write_bytes
from stce_jax.reproduce import bodies, clusters, recipe, recipe_protocol
from stce_jax.reproduce.cells import Cell, Row, cell_of, load_rows, split_name
from stce_jax.reproduce.clustering import study_blocks
from stce_jax.reproduce.documents import Block, figure, heading, paragraph
from stce_jax.reproduce.kept import (
    VERSIONS,
    config_of,
    curves_of,
    digest,
    expected_config,
    pack,
    pack_shares,
    write_run,
)
from stce_jax.reproduce.kept_folders import IMAGES, TestImages, read_folder, read_images, write_images
from stce_jax.reproduce.protocol import TABLE
from stce_jax.reproduce.sweep import SWEEP_FILE
from stce_jax.workdir.layout import read_config
from stce_jax.workdir.metric_lines import read_metrics, training_speed

RESULTS = "results"  # folder of a sweep in which they are kept first; those of the tables of a recipe have one below it
# Table -> its report, a function (runs, images, scale, seeds, folder of figures) -> blocks: the progress first, then,
# if a run is finished, what can be quoted.
BLOCKS: Mapping[str, Callable[..., list[Block]]] = {
    TABLE: study_blocks,
    recipe_protocol.SEARCH: recipe.search_blocks,
    recipe_protocol.TEST: recipe.test_blocks,
    bodies.TABLE: bodies.study_blocks,
}


def scale_of(workdir: Path) -> str:
    """The scale of a sweep; raises ConfigError for what is none, or one with words that change every row."""
    try:
        sweep = read_json(workdir / SWEEP_FILE)
        scale, overrides = sweep["scale"], sweep["overrides"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{workdir} is no workdir of `stce reproduce`; give the one that it trains in") from error
    if overrides:
        raise ConfigError(f"{workdir} changes the protocol: {' '.join(map(str, overrides))}; collect one without that")
    return str(scale)


def collect(workdir: Path, dataset: Any, table: str = TABLE) -> Path:
    """Writes the results of each finished cell to workdir/results, unless it is there and newer than the cell.

    Args:
      workdir: absolute path, of a sweep of this table.
      dataset: that it is trained on.
      table: one of BLOCKS.

    Returns:
      That folder.

    Raises:
      ConfigError: see `scale_of`.
      DataError: a cell was trained with another config than the protocol's, or its files are damaged.
    """
    scale, folder = scale_of(workdir), workdir / RESULTS
    if table != TABLE:
        folder = folder / table
    folder.mkdir(parents=True, exist_ok=True)
    rows = {row.run: row for row in load_rows(table, scale)}
    known = read_images(folder) if (folder / IMAGES).exists() else None
    if not known or known.fingerprint != dataset.fingerprint:
        config = next(iter(rows.values())).config()
        labels = np.array([int(dataset.val[place]["label"]) for place in range(len(dataset.val))])
        edges = clusters.edges_of_images(config, dataset) if table == TABLE else None
        write_images(folder, TestImages(dataset.fingerprint, tuple(dataset.class_ids), labels, edges), table)
    for cell in finished_cells(workdir, rows):
        kept = folder / f"{cell.directory.name}.json"
        evaluated = cell.directory / IN_RUN / SCORES
        if not kept.exists() or os.path.getmtime(kept) < os.path.getmtime(evaluated):
            write_run(folder, _result(cell, dataset))
    return folder


def finished_cells(workdir: Path, rows: dict[str, Row]) -> list[Cell]:
    """The finished cells of a sweep that are rows, of whatever seeds, in the order of the rows, then of the seeds."""
    found = [name for path in (workdir / "cells").glob("*_seed*") if (name := split_name(path.name))]
    order = list(rows)
    named = [(order.index(run), seed) for run, seed in found if run in rows]
    cells = [cell_of(rows[order[place]], seed, workdir) for place, seed in sorted(named)]
    return [cell for cell in cells if cell.finished()]


def _result(cell: Cell, dataset: Any) -> dict[str, Any]:
    """What is kept of a finished cell."""
    config, row = read_config(cell.directory), cell.row
    own, expected = config_of(config), expected_config(row)
    if own != expected or config.seed != cell.seed:
        keys = [key for key in sorted({**own, **expected}) if own.get(key) != expected.get(key)] or ["seed"]
        raise DataError(f"{cell.directory} was trained with another config.{keys[0]}; move it out of the sweep")
    predictions = read_predictions(cell.directory / IN_RUN)
    lines, record = read_metrics(cell.directory), cell.record()
    assert predictions is not None, "a finished cell has predictions"
    if len(predictions["hits"]) != len(dataset.val):
        raise DataError(f"{cell.directory} was tested on other images than {len(dataset.val)}; evaluate it again")
    found: dict[str, Any] = {
        "table": row.table,
        "protocol": VERSIONS[row.table],
        "scale": row.scale,
        "run": row.run,
        "seed": cell.seed,
        "config": own,
        "config_digest": digest(own),
        "images": dataset.fingerprint,
        "test_images": len(predictions["hits"]),
        "hits": pack(predictions["hits"]),
        "curves": curves_of(lines),
        "images_per_second": training_speed(lines),
        "seconds": record.get("seconds"),
        "place": _without_names(record.get("place", "")),
        "version": stce_jax.__version__,
    }
    if row.table == TABLE and clusters.has_clusters(config):
        seen = clusters.look(cell.directory, dataset)
        found["clusters"] = {name: pack_shares(values) for name, values in seen.items()}
    return found


def _without_names(place: str) -> str:
    """Where a cell was computed, without the names of machines: "2 cores, 1 x cpu, Python 3.11.7, jax 0.10.2"."""
    return "; ".join(dict.fromkeys(part.partition(", ")[2] for part in place.split("; ")))


def sweep_blocks(workdir: Path, dataset: Any, seeds: Sequence[int], table: str = TABLE) -> list[Block]:
    """The study's report of a sweep, with pictures of clusters, which show test images; what is wrong, if it has none.

    Args:
      workdir, dataset, table: see `collect`.
      seeds: that are planned.
    """
    try:
        scale, folder = scale_of(workdir), collect(workdir, dataset, table)
        blocks = BLOCKS[table](read_folder(folder, scale, table), read_images(folder), scale, seeds, workdir)
        picture = cluster_picture(workdir, dataset) if table == TABLE else None
    except StceError as error:
        return [paragraph(f"There is no report by the protocol: {error}.")]
    if picture:
        write_bytes(workdir / "clusters.png", pictures.png(picture))
        caption = "The same test images for all: the regular cells, and the clusters of trained networks."
        blocks += [heading("What clusters look like", level=3), figure(workdir / "clusters.png", caption)]
    return blocks


def cluster_picture(workdir: Path, dataset: Any, most: int = 7) -> Image.Image | None:
    """`clusters.sheet` of the first finished seed of each row that clusters, at most `most` rows; None without one."""
    rows = {row.run: row for row in load_rows(TABLE, scale_of(workdir))}
    chosen: dict[str, Path] = {}
    for cell in finished_cells(workdir, rows):
        if len(chosen) < most and clusters.has_clusters(cell.row.config()):
            chosen.setdefault(cell.row.run, cell.directory)
    return clusters.sheet(chosen, dataset)
