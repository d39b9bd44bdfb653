"""Folders of the kept results of a study: read, merged, and turned into what reports are made of.

A folder has a file for each run, RUN_seedN.json, see `kept`, and images.json about the test images.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from stce_jax.errors import DataError
from stce_jax.paths import first_line, parse_json, read_regular, write_text
from stce_jax.reproduce.cells import Row, cell_name, load_rows
from stce_jax.reproduce.kept import (
    CURVES,
    MOST_BYTES,
    MOST_IMAGES,
    VERSIONS,
    pack_shares,
    read_run,
    unpack_shares,
)
from stce_jax.reproduce.protocol import TABLE
from stce_jax.reproduce.results import NOT_FINISHED, Result

IMAGES = "images.json"
MOST_BYTES_OF_IMAGES = 2**20


@dataclasses.dataclass(frozen=True)
class TestImages:
    """What a study keeps of its test images, or of those held out.

    Attributes:
      fingerprint: of the whole data set, see `data.catalog`.
      class_ids: of the classes.
      labels: of the images, in the order of all hits.
      edges: the mean gradient of each image, 0..1 of the largest, in 255 steps; None where no report asks for it.
    """

    fingerprint: str
    class_ids: tuple[str, ...]
    labels: Int[np.ndarray, "n"]
    edges: Float[np.ndarray, "n"] | None = None


def write_images(folder: Path, images: TestImages, table: str = TABLE) -> None:
    """Writes images.json of a table's results."""
    changes = np.flatnonzero(np.diff(images.labels)) + 1
    starts = [0, *changes.tolist()]
    lengths = np.diff([*starts, len(images.labels)])
    entry: dict[str, Any] = {
        "protocol": VERSIONS[table],
        "images": images.fingerprint,
        "class_ids": list(images.class_ids),
        "labels": [[int(images.labels[start]), int(length)] for start, length in zip(starts, lengths, strict=True)],
    }
    if images.edges is not None:
        entry["edges"] = pack_shares(images.edges)
    write_text(folder / IMAGES, json.dumps(entry) + "\n")


def read_images(folder: Path) -> TestImages | None:
    """What images.json of a folder holds, None if there is none; raises DataError if it is damaged."""
    path = folder / IMAGES
    if not path.exists():
        return None
    try:
        found = parse_json(read_regular(path, MOST_BYTES_OF_IMAGES).decode())
        runs = [(int(label), int(count)) for label, count in found["labels"]]
        if any(count < 1 or not 0 <= label < len(found["class_ids"]) for label, count in runs):
            raise ValueError("a label is none of a class")
        if sum(count for _, count in runs) > MOST_IMAGES:
            raise ValueError(f"there are more than {MOST_IMAGES:,} images")
        labels = np.repeat([label for label, _ in runs], [count for _, count in runs])
        edges = unpack_shares(found["edges"]) if "edges" in found else None
        if edges is not None and len(edges) != len(labels):
            raise ValueError(f"there are {len(edges)} images with edges and {len(labels)} with labels")
        return TestImages(str(found["images"]), tuple(map(str, found["class_ids"])), labels, edges)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(f"{path} is damaged: {first_line(error)}; take it out, and collect again") from error


def read_folder(folder: Path, scale: str, table: str = TABLE) -> list[dict[str, Any]]:
    """All runs of a table's folder, see `read_run`, in the order of their names.

    Raises:
      DataError: a file is refused, or runs were tested on different images.
    """
    rows = {row.run: row for row in load_rows(table, scale)}
    images = read_images(folder)
    runs = [read_run(path, rows) for path in sorted(folder.glob("*.json")) if path.name != IMAGES]
    first = images.fingerprint if images else runs[0]["images"] if runs else ""
    count = len(images.labels) if images else runs[0]["test_images"] if runs else 0
    for run in runs:
        if (run["images"], run["test_images"]) != (first, count):
            name = f"{cell_name(run['run'], run['seed'])}.json"
            raise DataError(f"{folder / name} was tested on other images than the rest; keep it in a folder of its own")
    return runs


def merge(source: Path, target: Path, scale: str, table: str = TABLE) -> tuple[list[str], list[str]]:
    """Adds the runs of a folder to another one's; returns the names of (those added, those that were there already).

    Raises:
      DataError: either folder has what is refused, or they are of different images. Nothing is added then.
    """
    new, old = read_folder(source, scale, table), read_folder(target, scale, table)
    images, known = read_images(source), read_images(target)
    prints = {run["images"] for run in (*new, *old)} | {own.fingerprint for own in (images, known) if own}
    if len(prints) > 1:
        raise DataError(f"{source} and {target} are of different images; keep them in different folders")
    names = {cell_name(run["run"], run["seed"]) for run in old}
    added, there = [], []
    if images and not known:
        write_text(target / IMAGES, read_regular(source / IMAGES, MOST_BYTES_OF_IMAGES).decode())
    for run in new:
        name = cell_name(run["run"], run["seed"])
        if name in names:
            there.append(name)
            continue
        write_text(target / f"{name}.json", read_regular(source / f"{name}.json", MOST_BYTES).decode())
        added.append(name)
    return added, there


def results_of(table: str, runs: Sequence[Mapping[str, Any]], scale: str, seeds: Sequence[int]) -> list[Result]:
    """The `Result` of each row of a table at a scale; `seeds` are planned, and those of runs that are there, too."""
    planned = sorted({*seeds, *(run["seed"] for run in runs)})
    return to_results(runs, load_rows(table, scale), planned)


def to_results(runs: Sequence[Mapping[str, Any]], rows: Sequence[Row], seeds: Sequence[int]) -> list[Result]:
    """The `Result` of each row of what `read_folder` gives; `seeds` are those that are planned."""
    results = []
    for row in rows:
        own = sorted((run for run in runs if run["run"] == row.run), key=lambda run: run["seed"])
        done = [run["seed"] for run in own]
        curves = [_lines(run["curves"]) for run in own]
        best = [[line["top1"] for line in lines if line["split"] == "eval" and line["top1"]] for lines in curves]
        results.append(
            Result(
                row=row,
                seeds=done,
                top1=[float(run["hits"].mean()) for run in own],
                best=[max(of_run, default=math.nan) for of_run in best],
                hits=np.array([run["hits"] for run in own]),
                curves=curves,
                images_per_second=[run.get("images_per_second") for run in own],
                seconds=[run.get("seconds") for run in own],
                records={},
                unfinished={seed: NOT_FINISHED for seed in seeds if seed not in done},
            )
        )
    return results


def _lines(curves: Mapping[str, Mapping[str, list[float | None]]]) -> list[dict[str, Any]]:
    """Curves as lines of metrics."""
    lines: list[dict[str, Any]] = []
    for split, columns in curves.items():
        for place, epoch in enumerate(columns["epoch"]):
            values = {name: columns[name][place] if name in columns else None for name in CURVES}
            lines.append({"split": split, "epoch": epoch, **values})
    return lines
