"""The page of `stce watch`: curves of runs while they train, seeds of one config together, and a table of figures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from stce_jax.analysis.curves import COLOURS, Lines, over_runs
from stce_jax.analysis.intervals import mean_interval
from stce_jax.analysis.pages import shell
from stce_jax.workdir.score import NAMES, score_of

TITLE = "Runs"
# What is drawn, beside the score: its name, title, factor and bounds. A loss that blew up beyond them is drawn there.
LOSS = ("loss", "loss", 1, (-1e6, 1e6))
WIDTH, HEIGHT, LEFT, BOTTOM, EDGE = 560, 320, 48, 36, 10  # of a panel, in units of SVG; margins of its axes
POINTS = 400  # of a curve; of more, evenly chosen ones are drawn, and the last
MARKS = 60  # of these points have a marker that says its figures
SHAPES = (  # of a marker around 0,0, by its group, so that colour is not all that tells groups apart
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",
    "M-3.5,-3.5h7v7h-7z",
    "M0,-4.5L4.5,3.5H-4.5z",
    "M0,-5L4.5,0L0,5L-4.5,0z",
    "M-4.5,-3.5H4.5L0,4.5z",
    "M-1.5,-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
    "M-4.5,-3L-3,-4.5L0,-1.5L3,-4.5L4.5,-3L1.5,0L4.5,3L3,4.5L0,1.5L-3,4.5L-4.5,3L-1.5,0z",
)


class Group(NamedTuple):
    """Runs whose configs differ in their seed alone.

    Attributes:
      label: anybody's text.
      rows: of each run what the table shows, {"run", "seed", "state", "epoch", "epochs", "score", "best_score", "loss",
        "images_per_second", "last"}; what is not there yet is None.
      lines: of each run, as `read_metrics` gives them.
    """

    label: str
    rows: Sequence[Mapping[str, Any]]
    lines: Sequence[Lines]


def write(groups: Sequence[Group], *, written: str, moment: float, every: float | None) -> str:
    """The page.

    Args:
      groups: at least one.
      written: when it was, in words.
      moment: the same in seconds since 1970.
      every: seconds until it is written again; None: it is not.
    """
    several = any(len(group.lines) > 1 for group in groups)
    score = score_of(line for group in groups for lines in group.lines for line in lines)
    panels = _panel(groups, *LOSS) + _panel(groups, score, f"{NAMES[score]} (%)", 100, (0, 100))
    table = _table(groups, NAMES[score])
    legend = "".join(_legend(place, group) for place, group in enumerate(groups))
    refresh = "It is not refreshed any more."
    if every is not None:
        refresh = (
            '<label><input type="checkbox" id="refresh" checked autocomplete="off"> '
            f"load again every {every:g} seconds</label> <span id='late' role='status'></span>"
        )
    band = (
        "<p>Thick line: mean over the runs of a group, at the epochs that all of them have. Band: its 95% interval "
        "over seeds (Student's t); of two or three seeds it is wide, and it is cut where the picture ends. "
        "Thin lines: each run.</p>"
        if several
        else ""
    )
    body = (
        f"<header><h1>{TITLE}</h1><p>Written {shell.text(written)}. {refresh}</p></header>\n<main>"
        f'<ul class="legend">{legend}</ul>\n<div class="panels">{panels}</div>\n'
        "<p>Solid with markers: evaluation. Dashed: training, of augmented images, the mean over the runs. "
        f"A marker says its figures when the pointer rests on it.</p>{band}\n"
        f'<div class="scroll" tabindex="0" role="region" aria-label="figures of each run">{table}</div>\n'
        "<p>* The best of all evaluations: chosen on the images of the evaluation, so no independent estimate.<br>"
        "† Median while it trained, on its own machine beside its own neighbours: no comparison of models, which is "
        "<code>stce benchmark</code>.</p></main>"
    )
    data = {"every": every, "written": moment}
    return shell.page(TITLE, body, style="running.css", script="running.js", data=data)


def _legend(place: int, group: Group) -> str:
    count = f" ({len(group.rows)} seeds)" if len(group.rows) > 1 else ""
    sign = f'<path class="g{place % len(COLOURS)} mark" d="{SHAPES[_shape(place)]}"/>'
    svg = f'<svg viewBox="-7 -7 14 14" width="18" height="18" aria-hidden="true">{sign}</svg>'
    return f"<li>{svg} {shell.text(group.label)}{count}</li>"


def _shape(place: int) -> int:
    """Groups that share a colour differ in the marker."""
    return (place + place // len(COLOURS)) % len(SHAPES)


def _panel(groups: Sequence[Group], name: str, title: str, factor: float, bounds: tuple[float, float]) -> str:
    """One picture: evaluations and training of every group."""
    curves: list[tuple[int, str, list[float], Float[np.ndarray, "runs epochs"]]] = []
    for place, group in enumerate(groups):
        for split in ("train", "eval"):
            epochs, values = over_runs(group.lines, split, name)
            chosen = _thinned(len(epochs))
            drawn = factor * np.clip(values[:, chosen], bounds[0] / factor, bounds[1] / factor)
            curves.append((place, split, [epochs[index] for index in chosen], drawn))
    every = np.concatenate([values.ravel() for *_, values in curves] or [np.zeros(0)])
    last = max([epochs[-1] for _, _, epochs, _ in curves if epochs] or [1.0]) or 1.0
    low, high = _limits(every, bounds)
    scale = _Scale(last, low, high)
    parts = [_axes(scale, title)]
    for place, split, epochs, values in curves:
        parts.append(_curve(scale, place, split, epochs, values))
    empty = "" if every.size else f'<text class="words" x="{WIDTH / 2}" y="{HEIGHT / 2}">nothing yet</text>'
    clip = f"clip-{name}"
    area = (
        f'<clipPath id="{clip}"><rect x="{LEFT}" y="{EDGE}" width="{WIDTH - LEFT - EDGE}" '
        f'height="{HEIGHT - BOTTOM - EDGE}"/></clipPath>'
    )
    return (
        f'<figure><figcaption>{title}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{title} over epochs; the figures are in the table">{area}{parts[0]}'
        f'<g clip-path="url(#{clip})">{"".join(parts[1:])}</g>{empty}</svg></figure>'
    )


class _Scale(NamedTuple):
    """Epochs from 0 to `last`, values from `low` to `high`."""

    last: float
    low: float
    high: float

    def x(self, epoch: float) -> float:
        return LEFT + (WIDTH - LEFT - EDGE) * epoch / self.last

    def y(self, value: float) -> float:
        part = (value - self.low) / (self.high - self.low)
        # What lies far outside is cut anyway; viewers differ in what they make of huge numbers.
        return EDGE + (HEIGHT - BOTTOM - EDGE) * (1 - min(max(part, -2.0), 3.0))


def _limits(values: Float[np.ndarray, "n"], bounds: tuple[float, float]) -> tuple[float, float]:
    """Of an axis that shows all runs, a little beyond them."""
    if not values.size:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * (high - low) or 0.5 * abs(high) or 0.5
    return max(low - margin, bounds[0]), min(high + margin, bounds[1])


def _thinned(count: int) -> list[int]:
    """Places of at most POINTS of `count` points, the first and the last among them."""
    if count <= POINTS:
        return list(range(count))
    return np.linspace(0, count - 1, POINTS).round().astype(int).tolist()


def _curve(
    scale: _Scale, place: int, split: str, epochs: Sequence[float], values: Float[np.ndarray, "runs epochs"]
) -> str:
    if not epochs:
        return ""
    colour = f"g{place % len(COLOURS)}"
    means = values.mean(axis=0)
    if split == "train":
        return f'<path class="{colour} train" d="{_line(scale, epochs, means)}"/>'
    parts, intervals = [], [mean_interval(values[:, index]) for index in range(len(epochs))]
    if len(values) > 1:
        there = [scale.x(epoch) for epoch in epochs]
        upper = [f"{x:.1f},{scale.y(each.high):.1f}" for x, each in zip(there, intervals, strict=True)]
        lower = [f"{x:.1f},{scale.y(each.low):.1f}" for x, each in zip(there, intervals, strict=True)]
        parts.append(f'<polygon class="{colour} band" points="{" ".join(upper + lower[::-1])}"/>')
        parts += [f'<path class="{colour} one" d="{_line(scale, epochs, run)}"/>' for run in values]
    parts.append(f'<path class="{colour} mean" d="{_line(scale, epochs, means)}"/>')
    apart = max(1, -(-len(epochs) // MARKS))
    for index in range((len(epochs) - 1) % apart, len(epochs), apart):  # the last has one
        mean, low, high = intervals[index]
        words = f"epoch {epochs[index]:g}: {mean:.4g}" + (f" [{low:.4g}, {high:.4g}]" if len(values) > 1 else "")
        where = f"translate({scale.x(epochs[index]):.1f},{scale.y(mean):.1f})"
        shape = SHAPES[_shape(place)]
        parts.append(f'<path class="{colour} mark" transform="{where}" d="{shape}"><title>{words}</title></path>')
    return "".join(parts)


def _line(scale: _Scale, epochs: Sequence[float], values: Sequence[float] | np.ndarray) -> str:
    points = [f"{scale.x(epoch):.1f},{scale.y(value):.1f}" for epoch, value in zip(epochs, values, strict=True)]
    return "M" + "L".join(points) + ("h0.1" if len(points) == 1 else "")


def _axes(scale: _Scale, title: str) -> str:
    """Lines and numbers of both axes."""
    parts = []
    for value in _ticks(scale.low, scale.high):
        y = scale.y(value)
        parts.append(f'<path class="grid" d="M{LEFT},{y:.1f}H{WIDTH - EDGE}"/>')
        parts.append(f'<text class="up" x="{LEFT - 6}" y="{y + 4:.1f}">{value:g}</text>')
    for epoch in _ticks(0, scale.last):
        x = scale.x(epoch)
        parts.append(f'<path class="grid" d="M{x:.1f},{EDGE}V{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text class="along" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}">{epoch:g}</text>')
    middle = (LEFT + WIDTH - EDGE) / 2
    return "".join([*parts, f'<text class="along" x="{middle}" y="{HEIGHT - 4}">epoch</text>'])


def _ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` + 1 round numbers from low to high."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _table(groups: Sequence[Group], score: str) -> str:
    names = (
        "group",
        "run",
        "seed",
        "state",
        "epochs",
        score,
        f"best {score}*",
        "loss",
        "training images/s†",
        "last line",
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows = []
    for group in groups:
        for row in group.rows:
            cells = [
                group.label,
                row["run"],
                str(row["seed"]),
                row["state"],
                f"{row['epoch']:.2f}/{row['epochs']:g}",
                _text(row["score"], "{:.2%}"),
                _text(row["best_score"], "{:.2%}"),
                _text(row["loss"], "{:.4f}"),
                _text(row["images_per_second"], "{:,.0f}"),
                row["last"] or "-",
            ]
            rows.append("<tr>" + "".join(f"<td>{shell.text(cell)}</td>" for cell in cells) + "</tr>")
        rows += _over_seeds(group, score)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _over_seeds(group: Group, score: str) -> list[str]:
    """A line with the interval of the last evaluations, once all runs of several have finished."""
    values = [row["score"] for row in group.rows if row["state"] == "finished" and row["score"] is not None]
    if len(group.rows) < 2 or len(values) < len(group.rows):
        return []
    mean, low, high = (100 * value for value in mean_interval(values))
    text = f"mean of {len(values)} seeds: {score} {mean:.2f}%, 95% interval {low:.2f} to {high:.2f}"
    return [f'<tr><td>{shell.text(group.label)}</td><td colspan="9">{text}</td></tr>']


def _text(value: Any, form: str) -> str:
    return "-" if value is None else form.format(value)
