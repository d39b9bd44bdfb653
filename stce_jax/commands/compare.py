"""The words of `stce compare`."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from stce_jax.commands import common, tables
from stce_jax.platform import terminal

HELP = "show runs side by side: curves, accuracies, what differs"
EXAMPLES = """
  stce compare runs/digits runs/patch
  stce compare runs/* --output=embeddings.svg --checkpoint=best
  stce compare runs/digits runs/patch --json

The other runs are compared with the first. Of runs that were evaluated with
`stce evaluate --workdir=RUN --output=RUN/evaluation` the difference is shown with its 95% interval."""
NONE = "-"
DIFFERING = {  # why two evaluations cannot be compared -> how they were made
    "other images": "on other images",
    "other test-time augmentation": "with other test-time augmentation (--tta)",
}


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("workdirs", nargs="+", metavar="RUN", help="workdirs of runs, finished or not")
    verb.add_argument("--output", default="compare.png", help="picture of the curves (default: compare.png)")
    verb.add_argument(
        "--checkpoint", default="last", help="whose loss and top-1 or mAP: last (the default), best, or a step"
    )
    verb.add_argument("--json", action="store_true", help="print JSON in place of the table")
    common.add_modules(verb)


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    from stce_jax.verbs.compare import compare, short_names, to_json

    common.register_modules(arguments)
    result = compare(arguments.workdirs, arguments.output, checkpoint=arguments.checkpoint)
    if arguments.json:
        terminal.Data().write(to_json(result).encode() + b"\n")
        return
    names = dict(zip(arguments.workdirs, short_names(arguments.workdirs), strict=True))
    _print_runs(result["runs"], result["score"], names, arguments.checkpoint)
    _print_differences(result["runs"], names)
    _print_pairs(result["pairs"], names)
    if result["pairs"]:
        _print_missing(result["runs"], names)
    terminal.say(f"curves in {arguments.output}")


def _print_runs(rows: Sequence[Mapping[str, Any]], score: str, names: Mapping[str, str], checkpoint: str) -> None:
    from stce_jax.workdir.score import NAMES

    shown = {"last": "last", "best": "best"}.get(checkpoint, f"step {checkpoint}")
    header = ["run", "model", "epochs", "state", f"{NAMES[score]}, {shown}", f"best {NAMES[score]}*", f"loss, {shown}"]
    table = [[*header, "parameters", "training images/s**"]]
    for row in rows:
        state = "finished" if row["finished"] else "in progress"
        table.append(
            [
                names[row["run"]],
                row["model"],
                f"{row['epoch']:.2f}/{row['epochs']:g}",
                state if row["step"] is not None else "no evaluation yet",
                _text(row[score], "{:.2%}"),
                _text(row[f"best_{score}"], "{:.2%}"),
                _text(row["loss"], "{:.4f}"),
                _text(row["parameters"], "{:,}"),
                _text(row["images_per_second"], "{:,.0f}"),
            ]
        )
    terminal.say(*tables.aligned(table, right=(2, 4, 5, 6, 7, 8)))
    terminal.say("* the best of all evaluations: chosen on the images of the evaluation, so no independent estimate")
    if any(row["images_per_second"] for row in rows):
        say = "** median while it trained, loading included, on its machine of then: stce benchmark compares speeds"
        terminal.say(say)


def _text(value: Any, form: str) -> str:
    return NONE if value is None else form.format(value)


def _print_differences(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> None:
    first = names[rows[0]["run"]]
    for row in rows[1:]:
        changes = "; ".join(row["differences"])
        text = f"differs from {first}: {changes}" if changes else f"has the same config as {first}"
        terminal.say(f"{names[row['run']]} {text}")


def _print_pairs(pairs: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> None:
    for pair in pairs:
        first, second = (names[pair[place]] for place in ("first", "second"))
        if pair.get("reason") in DIFFERING:
            how = DIFFERING[pair["reason"]]
            terminal.say(f"{second} and {first} were evaluated {how}: no interval of the difference")
        elif "reason" not in pair:
            points, low, high = (100 * pair[name] for name in ("difference", "low", "high"))
            both = f"; both with --tta={pair['tta']}" * bool(pair["tta"])
            terminal.say(
                f"{second} {pair['second_top1']:.2%} - {first} {pair['first_top1']:.2%} = {points:+.2f} points, "
                f"95% interval {low:+.2f} to {high:+.2f}; of {pair['images']} images {pair['only_second']} are right "
                f"in {second} alone, {pair['only_first']} in {first} alone, McNemar p = {pair['p_value']:.3g}{both}"
            )


def _print_missing(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> None:
    missing = [names[row["run"]] for row in rows if not row["predictions"]]
    if missing and len(rows) > 1:
        terminal.say(f"no predictions yet, hence no interval of a difference, of {', '.join(missing)}:")
        terminal.say("  stce evaluate --workdir=RUN --output=RUN/evaluation")
