"""The words of `stce benchmark`."""

import argparse
import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

from stce_jax.commands import common, tables
from stce_jax.errors import ConfigError
from stce_jax.platform import terminal

HELP = "measure images a second, latency and memory of models against one another"
EXAMPLES = """
  stce benchmark vit_s_patch vit_s_conv vit_s_stce --batch_sizes=8
  stce benchmark vit_s_stce,iterations=1 vit_s_stce,iterations=3 --what=inference --rounds=20
  stce benchmark 'vit_ti_*' runs/digits digits:patch --dtypes=float32,bfloat16 --csv=speed.csv

A MODEL is a name or pattern of `stce models`, a workdir of a run, or a config; ,KEY=VALUE sets an option of it.
One device is used. Batches lie on it already: loading and transfer from the host are not included."""

# Header -> (key of the row, how it is shown, minimum width: so that the blocks of a call match).
COLUMNS: dict[str, tuple[str, Callable[[Any], str], int]] = {
    "model": ("model", str, 12),
    "dtype": ("dtype", str, 8),
    "batch": ("batch_size", str, 5),
    "pixels": ("image_size", str, 6),
    "what": ("what", str, 9),
    "images/s": ("images_per_second", "{:,.1f}".format, 8),
    "ms/batch": ("latency_ms", "{:,.2f}".format, 9),
    "95%": ("latency_ms_p95", "{:,.2f}".format, 9),
    "compile s": ("compile_seconds", "{:.1f}".format, 9),
    "MiB": ("peak_bytes", lambda value: f"{value / 2**20:,.1f}", 7),
    "parameters": ("parameters", lambda value: _short(value), 10),
    "multiply-adds": ("multiply_adds", lambda value: _short(value), 13),
    "ratio": ("ratio", "{:.3f}".format, 6),
    "±": ("ratio_margin", "{:.3f}".format, 5),
}
LEFT = ("model", "dtype", "what")


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("models", nargs="+", metavar="MODEL", help="such as vit_s_stce, 'vit_s_*', runs/digits")
    verb.add_argument("--batch_sizes", type=_numbers, help="images of a batch (1,8,32; a run's own)")
    verb.add_argument("--dtypes", type=_words, help="float32, bfloat16 or both, with a comma (the model's own)")
    verb.add_argument("--image_size", type=int, help="side of the images in pixels (224; a run's own)")
    verb.add_argument("--num_classes", type=int, help="classes of the head (100; a run's own)")
    verb.add_argument("--what", type=_words, default=("inference", "training"), help="inference, training or both")
    verb.add_argument("--rounds", type=int, default=10, help="turns of each model (10)")
    verb.add_argument("--seconds", type=float, default=0.2, help="minimum length of a turn (0.2)")
    verb.add_argument("--accumulate", type=int, default=1, help="micro-batches of a training step (1)")
    common.add_modules(verb)
    verb.add_argument("--csv", default="", metavar="FILE", help="write the table there, too")
    verb.add_argument("--json", default="", metavar="FILE", help="write it as a list of objects, too")


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    from stce_jax.analysis.timing.turns import machine
    from stce_jax.paths import open_path
    from stce_jax.verbs.benchmark import benchmark

    if arguments.json and arguments.json == arguments.csv:
        raise ConfigError(f"--json and --csv would mix in {arguments.json}; give one of them another file")
    for file in filter(None, (arguments.csv, arguments.json)):
        if not open_path(file).parent.is_dir():  # before minutes of measuring
            raise ConfigError(f"cannot write {file}: there is no directory {open_path(file).parent}")
    common.register_modules(arguments)
    printed: list[Any] = []

    def print_rows(rows: list[dict[str, Any]]) -> None:
        if not printed:
            terminal.say(machine())
        lines = table(rows)
        terminal.say(*lines[bool(printed) :])
        printed.append(rows)

    options = {name: getattr(arguments, name) for name in ("batch_sizes", "dtypes", "image_size", "num_classes")}
    options |= {name: getattr(arguments, name) for name in ("what", "rounds", "seconds", "accumulate")}
    rows = benchmark(arguments.models, **options, on_rows=print_rows)
    terminal.say(_notes(rows))
    write(rows, csv_file=arguments.csv, json_file=arguments.json)
    if all(row["error"] for row in rows):
        raise ConfigError(f"nothing could be measured: {rows[0]['error']}; try smaller --batch_sizes")


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A header and a line for each row, aligned."""
    cells = [list(COLUMNS)]
    for row in rows:
        cells.append(["" if row[key] is None else show(row[key]) for key, show, _ in COLUMNS.values()])
    right = [place for place, name in enumerate(COLUMNS) if name not in LEFT]
    minimum = [width for _, _, width in COLUMNS.values()]
    header, *lines = tables.aligned(cells, right, minimum, gap=" ")
    errors = [f"  {row['error']}" if row["error"] else "" for row in rows]
    return [header, *(f"{line}{error}" for line, error in zip(lines, errors, strict=True))]


def write(rows: Sequence[dict[str, Any]], *, csv_file: str = "", json_file: str = "") -> None:
    """Writes rows of `benchmark` to whole files, what was not measured as an empty cell or null.

    Raises:
      ConfigError: one cannot be written.
    """
    from stce_jax.paths import named_failures, open_path, write_text

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    for file, content in ((csv_file, text.getvalue()), (json_file, json.dumps(rows, indent=2) + "\n")):
        if file:
            with named_failures(f"write {file}", "give another file"):
                write_text(open_path(file), content)


def _short(count: float) -> str:
    """17997508 -> 18.0M."""
    units = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
    size, unit = next(((size, unit) for size, unit in units if count >= size), (1.0, ""))
    return f"{count / size:.3g}{unit}"


def _notes(rows: Sequence[dict[str, Any]]) -> str:
    kinds = sorted({row["memory_kind"] for row in rows if row["memory_kind"]})
    return (
        f"MiB: peak memory ({', '.join(kinds) or 'not measured'}); multiply-adds: of one image forward; "
        "ratio: images/s to the first model's, ± its 95% interval"
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers such as 1,8,32") from error
