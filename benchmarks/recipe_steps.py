"""The next step of the forward selection of docs/recipe.md, by its rule and the kept results alone.

    python benchmarks/recipe_steps.py --scale=small            prints what is kept, and adds the next step to the table
    python benchmarks/recipe_steps.py --scale=small --dry_run  only prints

Then `stce reproduce recipe` trains the step, `study.py --table=recipe --collect` keeps it, and this comes again.
"""

import argparse
import re
import sys
from pathlib import Path

import study

from stce_jax.configs.tables import _recipe_steps, recipe
from stce_jax.errors import StceError
from stce_jax.paths import absolute, write_text
from stce_jax.platform import terminal

DATA = Path(_recipe_steps.__file__)


def with_step(text, scale, step):
    """The text of `_recipe_steps.py` with another step at the end of a scale's."""
    start = text.index("STEPS: ")
    text, before = text[start:], text[:start]
    line = f"        ({', '.join(repr(name) for name in step)},),".replace("'", '"').replace(",),", "),")
    empty, full = f'    "{scale}": (),\n', re.compile(rf'    "{scale}": \(\n(.*?)    \),\n', re.DOTALL)
    if empty in text:
        return before + text.replace(empty, f'    "{scale}": (\n{line}\n    ),\n')
    if not full.search(text):
        sys.exit(f"{DATA} has no steps of {scale} that this script has written; add {step} by hand")
    return before + full.sub(lambda found: f'    "{scale}": (\n{found[1]}{line}\n    ),\n', text)


def with_first(text, scale, recipe):
    """The text of `_recipe_steps.py` with what the first round gave at a scale."""
    start, words = text.index("FIRST: "), ", ".join(f'"{name}"' for name in recipe)
    before, empty, after = text[start:].partition(f'    "{scale}": (),\n')
    assert empty, "it is written once"
    return text[:start] + before + f'    "{scale}": ({words}{"," if len(recipe) == 1 else ""}),\n' + after


def main():
    from stce_jax.reproduce.cells import load_rows
    from stce_jax.reproduce.kept_folders import read_folder, to_results
    from stce_jax.reproduce.recipe import choices
    from stce_jax.reproduce.recipe_protocol import SEARCH, SEEDS, select

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="small", choices=recipe.VARIANTS)
    parser.add_argument("--results", type=Path, default=study.PAGES[SEARCH].results, metavar="DIR")
    parser.add_argument("--dry_run", action="store_true", help="print what comes next, and write nothing")
    options = parser.parse_args()
    try:
        runs = read_folder(absolute(options.results) / options.scale, options.scale, SEARCH)
        rows = load_rows(SEARCH, options.scale)
    except StceError as error:
        terminal.warn(error)
        sys.exit(error.exit_code)
    results = {result.row.run: result for result in to_results(runs, rows, SEEDS) if result.seeds}
    terminal.say(*choices(results, options.scale))
    found = select(results, options.scale)
    step = found.next
    if options.dry_run:
        return
    if found.first and not _recipe_steps.FIRST[options.scale]:
        write_text(DATA, with_first(DATA.read_text(), options.scale, found.first))
        terminal.say(f"train the second round: stce reproduce recipe --scale={options.scale}")
    if not step:
        return
    steps = _recipe_steps.STEPS[options.scale]
    if step not in steps:
        write_text(DATA, with_step(DATA.read_text(), options.scale, step))
    number = steps.index(step) + 1 if step in steps else len(steps) + 1
    terminal.say(f"train it: stce reproduce recipe --scale={options.scale} --runs=step_{number}")


if __name__ == "__main__":
    main()
