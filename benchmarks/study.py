"""Keeps the results of the studies that have a protocol, and draws their pages from them again.

    python benchmarks/study.py                                        draws docs/study.md from what is kept
    python benchmarks/study.py --collect runs/clustering --data_dir DIR   first adds a sweep's finished runs
    python benchmarks/study.py --merge DIR/medium                     first adds somebody's files of a scale
    python benchmarks/study.py --collect runs/c --data_dir DIR --results out --no_document   anywhere else; no document
    python benchmarks/study.py --table=recipe ...                     the same of docs/recipe.md: recipe, recipe_test
    python benchmarks/study.py --table=bodies ...                     the same of docs/bodies.md

Runs that are there stay as they are. Another version of the protocol, another config, or other images are refused.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import documents

from stce_jax.errors import StceError
from stce_jax.paths import absolute, read_json
from stce_jax.platform import jax_settings, terminal

CLUSTERING = "clustering"


class Page(NamedTuple):
    """Where the results of a table stand.

    Attributes:
      results: folder that has one for each scale.
      document: whose sections are drawn.
      sections: of it, for what can be quoted and for all else.
      planned: {scale: seeds}; of other scales those that are there.
      titles: {scale: heading}.
      figures: names of the pictures that reports make.
    """

    results: Path
    document: Path
    sections: tuple[str, str]
    planned: dict[str, range]
    titles: dict[str, str]
    figures: tuple[str, ...]


_RECIPE = {"small": "32 pixels", "medium": "64 pixels", "medium_128": "On a GPU: ViT-S, 128 pixels"}
_SEEDS = dict.fromkeys(_RECIPE, range(3))
PAGES = {
    CLUSTERING: Page(
        documents.DOCS / "study",
        documents.DOCS / "study.md",
        ("answers", "study"),
        {"medium": range(5), "medium_128": range(3)},
        {"medium": "On CPUs: 64 pixels", "medium_128": "On a GPU: ViT-S, 128 pixels"},
        ("differences", "curves", "entropy"),
    ),
    "recipe": Page(
        documents.DOCS / "recipe",
        documents.DOCS / "recipe.md",
        ("choices", "search"),
        _SEEDS,
        _RECIPE,
        ("gains",),
    ),
    "recipe_test": Page(
        documents.DOCS / "recipe_test",
        documents.DOCS / "recipe.md",
        ("answers", "test"),
        _SEEDS,
        _RECIPE,
        ("curves",),
    ),
    "bodies": Page(
        documents.DOCS / "bodies",
        documents.DOCS / "bodies.md",
        ("answers", "bodies"),
        {"small": range(2)},
        {"small": "32 pixels"},
        (),
    ),
}


def add(source, results, scale, table):
    """Merges a folder of a table's results into that of its scale; says what came of it."""
    from stce_jax.reproduce.kept_folders import merge

    target = results / scale
    target.mkdir(parents=True, exist_ok=True)
    added, there = merge(source, target, scale, table)
    terminal.say(f"{scale}: {len(added)} runs added, {len(there)} were there: {', '.join(added) or 'nothing new'}")


def scale_of_folder(folder):
    """The scale that the first run of a folder of results names."""
    from stce_jax.errors import DataError
    from stce_jax.reproduce.kept_folders import IMAGES

    files = sorted(path for path in folder.glob("*.json") if path.name != IMAGES)
    try:
        return str(read_json(files[0])["scale"])
    except (IndexError, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} holds no results; give a folder of RUN_seedN.json") from error


def collect_sweep(workdir, data_dir, results, table):
    """Adds the finished runs of a sweep of a table."""
    from stce_jax.reproduce.cells import load_rows
    from stce_jax.reproduce.collecting import collect, scale_of
    from stce_jax.training.assemble import open_dataset

    scale = scale_of(workdir)
    dataset = open_dataset(load_rows(table, scale)[0].config(), data_dir)
    add(collect(workdir, dataset, table), results, scale, table)


def draw(results, folder_of_figures, table=CLUSTERING):
    """(answers, results) of all scales that have results, Markdown; figures go into a folder for each scale."""
    from importlib import import_module

    from stce_jax.reproduce import documents as blocks_of
    from stce_jax.reproduce.collecting import BLOCKS
    from stce_jax.reproduce.kept_folders import read_folder, read_images

    answers, parts, page = [], [], PAGES[table]
    for scale in import_module(f"stce_jax.configs.tables.{table}").VARIANTS:
        if not (results / scale).is_dir():
            continue
        runs, images = read_folder(results / scale, scale, table), read_images(results / scale)
        figures = folder_of_figures / scale
        figures.mkdir(parents=True, exist_ok=True)
        title = blocks_of.heading(page.titles.get(scale, f"Scale `{scale}`"), level=3)
        progress, *blocks = BLOCKS[table](runs, images, scale, page.planned.get(scale, ()), figures)
        if not blocks:
            continue
        sentences, *blocks = blocks
        answers.append(blocks_of.to_markdown([title, sentences, progress]))
        text = blocks_of.to_markdown([title, *(_deeper(block) for block in blocks)])
        for name in page.figures:
            text = text.replace(f"]({name}.png)", f"]({page.results.name}/{scale}/{name}.png)")
        parts.append(text)
    return tuple("\n".join(texts) or "No run is finished.\n" for texts in (answers, parts))


def _deeper(block):
    """Headings below that of the scale."""
    return block | {"level": 4} if block["kind"] == "heading" else block


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", default=CLUSTERING, choices=PAGES, help="whose results (clustering)")
    parser.add_argument("--collect", action="append", default=[], metavar="WORKDIR", help="of a sweep; several times")
    parser.add_argument("--data_dir", default="", help="where the sweeps' images are")
    parser.add_argument("--merge", action="append", default=[], metavar="DIR", help="somebody's results of one scale")
    parser.add_argument("--results", type=Path, metavar="DIR", help="has a folder for each scale")
    parser.add_argument("--document", type=Path, help="whose sections are drawn")
    parser.add_argument("--no_document", action="store_true", help="draw nothing")
    options = parser.parse_args()
    jax_settings.use_cpus_only()  # networks are looked into one image after the other: no GPU is faster
    table, page = options.table, PAGES[options.table]
    results, document = absolute(options.results or page.results), options.document or page.document
    words = "python benchmarks/study.py" + f" --table={table}" * (table != CLUSTERING)
    try:
        for workdir in options.collect:
            collect_sweep(absolute(workdir), options.data_dir, results, table)
        for folder in options.merge:
            add(absolute(folder), results, scale_of_folder(absolute(folder)), table)
        if not options.no_document:
            with tempfile.TemporaryDirectory() as unused:
                figures = results if results == page.results else Path(unused)
                answers, text = draw(results, figures, table)
            documents.write_section(page.sections[0], answers, "", document)
            documents.write_section(page.sections[1], text, words, document)
    except StceError as error:
        terminal.warn(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
