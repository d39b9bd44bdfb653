"""The words of `stce predict`."""

import argparse
import contextlib
import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

from stce_jax.commands import common, tables
from stce_jax.errors import ConfigError
from stce_jax.platform import terminal

HELP = "name the likeliest classes of images"
EXAMPLES = """
  stce predict photo.jpg --workdir=runs/pets
  stce predict photos more/*.png --workdir=runs/pets --topk=1 --csv=classes.csv
  stce predict photos --workdir=runs/pets --tta=flip
  stce predict photos --workdir=runs/pets --json=- | jq -r '.[] | .name + " " + .classes[0].name'
  stce predict photos --workdir=runs/scenes --threshold=0.3

Of a run whose images have several labels, all classes of at least the threshold are named, or none."""
WIDEST = 60  # columns that names of files get before the others are pushed aside


Write = Callable[[dict[str, Any]], Any]  # of one record


def add_arguments(verb: argparse.ArgumentParser) -> None:
    common.add_images(verb)
    common.add_reduction(verb)
    common.add_tta(verb)
    verb.add_argument(
        "--topk", type=int, metavar="K", help="classes of each image at most (default: 5; of several labels: all)"
    )
    verb.add_argument(
        "--threshold", type=float, metavar="P", help="least probability of a class (default: 0; of several labels: 0.5)"
    )
    verb.add_argument("--json", default="", metavar="FILE", help="write a JSON array; - is standard output, alone")
    verb.add_argument("--csv", default="", metavar="FILE", help="write a line a class; - is standard output, alone")


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    if arguments.json and arguments.json == arguments.csv:
        raise ConfigError(f"--json and --csv would mix in {arguments.json}; give one of them another file")
    from stce_jax.data.files import list_images
    from stce_jax.verbs.predict import predict

    files = list_images(arguments.paths, terminal.warn)
    common.register_modules(arguments)
    failures: list[Exception] = []
    records: Any = predict(
        files,
        **common.of_run(arguments),
        topk=arguments.topk,
        threshold=arguments.threshold,
        batch_size=arguments.batch_size,
        reduction=arguments.reduction,
        tta=arguments.tta,
        unreadable=common.complain(failures),
    )
    with contextlib.ExitStack() as outputs:
        outputs.enter_context(contextlib.closing(records))
        writers = [
            outputs.enter_context(writer(outputs.enter_context(common.output_file(path)), arguments.tta))
            for path, writer in ((arguments.json, _json), (arguments.csv, _csv))
            if path
        ]
        if "-" not in (arguments.json, arguments.csv):
            writers.append(_table(files))
        for record in records:
            for write in writers:
                write(record)
    if arguments.tta and "-" not in (arguments.json, arguments.csv):
        terminal.say(f"test-time augmentation {arguments.tta}: probabilities are means over several views of an image")
    sys.stdout.flush()
    common.end_with(failures, len(files))


@contextlib.contextmanager
def _json(file: BinaryIO, tta: str) -> Iterator[Write]:
    """Writes an array, a record a line; records say their `tta` themselves."""
    del tta
    separator = "["

    def write(record: dict[str, Any]) -> None:
        nonlocal separator
        file.write(f"{separator}\n{json.dumps(record, allow_nan=False)}".encode())
        separator = ","

    yield write
    file.write(b"\n]\n" if separator == "," else b"[]\n")


@contextlib.contextmanager
def _csv(file: BinaryIO, tta: str) -> Iterator[Write]:
    """Writes a line a class, with a column for the test-time augmentation where there is one."""
    from stce_jax.paths import encoded

    more = ("tta",) if tta else ()

    def write(*rows: Sequence[Any]) -> None:
        lines = io.StringIO()
        csv.writer(lines, lineterminator="\n").writerows(rows)
        file.write(encoded(lines.getvalue()))

    write(["name", "rank", "class_id", "class_name", "probability", *more])
    yield lambda record: write(
        *(
            [record["name"], rank, one["id"], one["name"], one["probability"], *(record[name] for name in more)]
            for rank, one in enumerate(record["classes"], start=1)
        )
    )


def _table(files: Sequence[str]) -> Write:
    """Prints a line a class, the first with the file's name. Classes come last, for their widths differ most."""
    width = min(WIDEST, max(map(tables.width, ["image", *files])))
    terminal.say(tables.line(["image", "probability", "class"], (width, 11, 0), right=(1,)))

    def write(record: dict[str, Any]) -> None:
        if not record["classes"]:
            terminal.say(tables.line([record["name"], "", "-"], (width, 11, 0), right=(1,)))
        for place, one in enumerate(record["classes"]):
            cells = ["" if place else record["name"], f"{100 * one['probability']:.2f}%", one["name"]]
            terminal.say(tables.line(cells, (width, 11, 0), right=(1,)))

    return write
