"""Does clustering help? Keeps the results of `stce reproduce clustering` and draws docs/study.md from them again.

    python benchmarks/study.py                                        draws what is kept below docs/study/
    python benchmarks/study.py --collect runs/clustering --data_dir DIR   first adds a sweep's finished runs
    python benchmarks/study.py --merge DIR/medium                     first adds somebody's files of a scale
    python benchmarks/study.py --collect runs/c --data_dir DIR --results out --no_document   anywhere else; no document

Runs that are there stay as they are. Another version of the protocol, another config, or other images are refused.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import documents

from stce_jax.errors import StceError
from stce_jax.paths import absolute, read_json
from stce_jax.platform import jax_settings, terminal

RESULTS = documents.DOCS / "study"
PLANNED = {"medium": range(5), "medium_128": range(3)}  # seeds of docs/study.md; of other scales those that are there
TITLES = {"medium": "On CPUs: 64 pixels", "medium_128": "On a GPU: ViT-S, 128 pixels"}


def add(source, results, scale):
    """Merges a folder of results into that of its scale; says what came of it."""
    from stce_jax.reproduce.kept_folders import merge

    target = results / scale
    target.mkdir(parents=True, exist_ok=True)
    added, there = merge(source, target, scale)
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


def collect_sweep(workdir, data_dir, results):
    """Adds the finished runs of a sweep."""
    from stce_jax.reproduce.cells import load_rows
    from stce_jax.reproduce.collecting import collect, scale_of
    from stce_jax.reproduce.protocol import TABLE
    from stce_jax.training.assemble import open_dataset

    scale = scale_of(workdir)
    dataset = open_dataset(load_rows(TABLE, scale)[0].config(), data_dir)
    add(collect(workdir, dataset), results, scale)


def draw(results, folder_of_figures):
    """(answers, results) of all scales that have results, Markdown; figures go into a folder for each scale."""
    from stce_jax.configs.tables import scales
    from stce_jax.reproduce import documents as blocks_of
    from stce_jax.reproduce.clustering import study_blocks
    from stce_jax.reproduce.kept_folders import read_folder, read_images

    answers, parts = [], []
    for scale in scales.VARIANTS:
        if not (results / scale).is_dir():
            continue
        runs, images = read_folder(results / scale, scale), read_images(results / scale)
        figures = folder_of_figures / scale
        figures.mkdir(parents=True, exist_ok=True)
        title = blocks_of.heading(TITLES.get(scale, f"Scale `{scale}`"), level=3)
        progress, *blocks = study_blocks(runs, images, scale, PLANNED.get(scale, ()), figures)
        if not blocks:
            continue
        sentences, *blocks = blocks
        answers.append(blocks_of.to_markdown([title, sentences, progress]))
        text = blocks_of.to_markdown([title, *(_deeper(block) for block in blocks)])
        for name in ("differences", "curves", "entropy"):
            text = text.replace(f"]({name}.png)", f"](study/{scale}/{name}.png)")
        parts.append(text)
    return tuple("\n".join(texts) or "No run is finished.\n" for texts in (answers, parts))


def _deeper(block):
    """Headings below that of the scale."""
    return block | {"level": 4} if block["kind"] == "heading" else block


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", action="append", default=[], metavar="WORKDIR", help="of a sweep; several times")
    parser.add_argument("--data_dir", default="", help="where the sweeps' images are")
    parser.add_argument("--merge", action="append", default=[], metavar="DIR", help="somebody's results of one scale")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="has a folder for each scale")
    parser.add_argument("--document", type=Path, default=documents.DOCS / "study.md", help="whose section is drawn")
    parser.add_argument("--no_document", action="store_true", help="draw nothing")
    options = parser.parse_args()
    jax_settings.use_cpus_only()  # networks are looked into one image after the other: no GPU is faster
    results = absolute(options.results)
    try:
        for workdir in options.collect:
            collect_sweep(absolute(workdir), options.data_dir, results)
        for folder in options.merge:
            add(absolute(folder), results, scale_of_folder(absolute(folder)))
        if not options.no_document:
            with tempfile.TemporaryDirectory() as unused:
                figures = results if results == RESULTS else Path(unused)
                answers, text = draw(results, figures)
            documents.write_section("answers", answers, "", options.document)
            documents.write_section("study", text, "python benchmarks/study.py", options.document)
    except StceError as error:
        terminal.warn(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
