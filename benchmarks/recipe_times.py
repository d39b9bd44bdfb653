"""How long a training image takes in each row of `stce reproduce recipe`, measured in turn; gives rows equal time.

    python benchmarks/recipe_times.py --scale=small --data_dir=DIR            prints
    python benchmarks/recipe_times.py --scale=small --data_dir=DIR --write    and puts them into the table's data
    python benchmarks/recipe_times.py --scale=small --data_dir=DIR --rows=all --write       not only those that decide
    python benchmarks/recipe_times.py --scale=small --data_dir=DIR --rows=step_1 --write    beside what is there

Each turn is a `stce train` of a few steps, so loading and augmentation count; steps that compile do not. A row's time
is the median over rounds of its ratio to the base in the same round, times the median of the base: other work on the
machine affects both. Rows whose time is there are measured against the base again and take their new ratio.
"""

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
from pathlib import Path

from measure import machine, markdown_table

from stce_jax.analysis.timing.turns import in_turn
from stce_jax.configs.tables import _recipe_times, recipe
from stce_jax.errors import ConfigError, StceError
from stce_jax.paths import write_text
from stce_jax.platform import compile_cache, terminal

DATA = Path(_recipe_times.__file__)
EVERY = 4  # steps between two lines of metrics


def milliseconds(row, data_dir, steps):
    """ms of wall time that a training image of a row takes: the mean over its image sizes of the medians of its lines.

    Args:
      row: of `load_rows`.
      data_dir: of the images.
      steps: of each image size.
    """
    from stce_jax.training.assemble import open_dataset
    from stce_jax.verbs.train import train
    from stce_jax.workdir.metric_lines import read_metrics

    config = row.config("--config.optimizer.warmup_epochs=0", f"--config.log_every={EVERY}")
    sizes = max(1, len(config.get("progressive_sizes", ())))
    with config.unlocked():
        config.data_dir = str(data_dir)
        with contextlib.redirect_stdout(io.StringIO()):
            images = len(open_dataset(config).train)
        config.epochs = config.eval_every = sizes * steps * config.batch_size / images
        if "mixing_off_epochs" in config.augment:
            config.augment.mixing_off_epochs = 0.0  # of a run that is as short
    with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stdout(io.StringIO()):
        train(config, workdir)
        lines = [line for line in read_metrics(Path(workdir)) if line["split"] == "train"]
    found = []
    for place in range(sizes):
        own = lines[place * len(lines) // sizes : (place + 1) * len(lines) // sizes]
        found.append(statistics.median(1000 / line["images_per_second"] for line in own if line["images_per_second"]))
    return statistics.mean(found)


def measure(rows, data_dir, *, rounds, steps):
    """{run: ms an image} of rows, the first of which is the base."""
    rounds_of = {row.run: [] for row in rows}
    by_run = {row.run: row for row in rows}
    for row in rows:
        milliseconds(row, data_dir, EVERY)  # compiles
    for run in in_turn(by_run, rounds):
        rounds_of[run].append(milliseconds(by_run[run], data_dir, steps))
    base = rounds_of[rows[0].run]
    unit = statistics.median(base)
    ratios = {run: statistics.median(a / b for a, b in zip(own, base, strict=True)) for run, own in rounds_of.items()}
    return {run: unit * ratio for run, ratio in ratios.items()}


def with_times(text, scale, times):
    """The text of `_recipe_times.py` with the times of a scale."""
    start = text.index("MS: dict[str, dict[str, float]] = {")
    end = text.index("\n}\n", start) + 3
    known = {**_recipe_times.MS, scale: times}
    lines = ["MS: dict[str, dict[str, float]] = {"]
    for name, own in known.items():
        lines.append(f'    "{name}": {{' + ("" if own else "},"))
        if own:
            lines += [*(f'        "{run}": {own[run]:.4g},' for run in own), "    },"]
    return text[:start] + "\n".join([*lines, "}\n"]) + text[end:]


def merged(known, measured):
    """Times of a scale: those that are there, in the unit of their own base, with the new ones' ratios."""
    if "base" not in known:
        return measured
    return known | {run: known["base"] * own / measured["base"] for run, own in measured.items() if run != "base"}


def main():
    from stce_jax.reproduce.cells import load_rows
    from stce_jax.reproduce.recipe_protocol import SEARCH, TEST

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="small", choices=recipe.VARIANTS)
    parser.add_argument("--data_dir", default="", help="class folders")
    parser.add_argument("--rows", default="", help="names with commas, or all; by default those that decide")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="of each turn and image size")
    parser.add_argument("--write", action="store_true", help=f"put them into {DATA.name}")
    options = parser.parse_args()
    compile_cache.turn_on()
    try:
        rows = load_rows(SEARCH, options.scale)
        rows += [row for row in load_rows(TEST, options.scale) if row.run != "base"]
        decide = [row.run for row in rows if row.decides]
        names = {"": decide, "all": [row.run for row in rows]}.get(options.rows, options.rows.split(","))
        if unknown := set(names) - {row.run for row in rows}:
            raise ConfigError(f"there are no rows {', '.join(unknown)}; there are {', '.join(row.run for row in rows)}")
        chosen = [row for row in rows if row.run in ("base", *names)]
        times = measure(chosen, options.data_dir, rounds=options.rounds, steps=options.steps)
    except StceError as error:
        terminal.warn(error)
        sys.exit(error.exit_code)
    base = times["base"]
    terminal.say(machine())
    rows = [{"row": run, "ms an image": f"{own:.2f}", "of the base": f"{own / base:.2f}"} for run, own in times.items()]
    terminal.say(*markdown_table(rows).splitlines())
    if options.write:
        times = merged(_recipe_times.MS[options.scale], times)
        write_text(DATA, with_times(DATA.read_text(), options.scale, times))
        terminal.say(f"written to {DATA}")


if __name__ == "__main__":
    main()
