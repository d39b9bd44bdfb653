"""Learning curves: a colour and a marker for each group of runs, the mean over its runs and the band they lie in."""

import io
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

from stce_jax.paths import is_remote, open_path, write_bytes
from stce_jax.platform import terminal
from stce_jax.workdir.metric_lines import read_metrics
from stce_jax.workdir.score import NAMES, score_of

# Those of Okabe and Ito's colours, which differ for every kind of colour vision, that can be seen on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#000000", "#CC79A7")
MARKERS = "os^DvPX"
BAND = "band: min to max of the runs"

Lines = Sequence[Mapping[str, Any]]  # of one run, as `read_metrics` gives them


def curves(groups: Mapping[str, Sequence[Lines]], path: epath.PathLike) -> epath.PathLike:
    """Draws loss (left) and score (right) over epochs: evaluation solid with markers, training thin and dashed.

    A group of several runs, such as the seeds of one model, is drawn as their mean and a band from their minimum to
    their maximum, at the epochs that all runs with any value have: the mean is of the same runs everywhere.

    Args:
      groups: {label: [lines of one run, ...]}. A group keeps its colour in both panels, and in every figure in which it
        has the same place.
      path: of the picture, local or remote; its suffix gives the format, such as .png, .svg or .pdf.

    Returns:
      `path`.

    Raises:
      OSError: it cannot be written.
      ValueError: there is no such format.
    """
    from matplotlib.figure import Figure

    handles = _legend(groups)
    columns = min(3, len(handles))
    rows = -(-len(handles) // columns)
    figure = Figure(figsize=(9, 3.6 + 0.25 * rows), layout="constrained")
    score = score_of(line for runs in groups.values() for lines in runs for line in lines)
    panels = (("loss", "loss", 1), (score, f"{NAMES[score]} (%)", 100))
    for axes, (name, title, factor) in zip(figure.subplots(1, 2), panels, strict=True):
        for place, (label, runs) in enumerate(groups.items()):
            for split in ("train", "eval"):
                epochs, values = over_runs(runs, split, name)
                style = _style(place, split, len(epochs))
                axes.plot(epochs, factor * values.mean(0), label=f"{label} {split}", **style)
                if split == "eval" and len(values) > 1:
                    band = factor * values.min(0), factor * values.max(0)
                    axes.fill_between(epochs, *band, color=style["color"], alpha=0.2, linewidth=0)
        axes.set(xlabel="epoch", title=title)
        axes.grid(alpha=0.3)
    return save_figure(figure, path, handles=handles, columns=columns)


def over_epochs(groups: Mapping[str, Sequence[Lines]], name: str, title: str, path: epath.PathLike) -> epath.PathLike:
    """Draws one number of the evaluations over epochs, as `curves` does; runs without it are left out."""
    from matplotlib.figure import Figure

    handles = _legend(groups)[: len(groups)]
    columns = min(3, len(handles))
    figure = Figure(figsize=(6, 3.4 + 0.25 * -(-len(handles) // columns)), layout="constrained")
    axes = figure.subplots()
    for place, runs in enumerate(groups.values()):
        epochs, values = over_runs(runs, "eval", name)
        axes.plot(epochs, values.mean(0), **_style(place, "eval", len(epochs)))
    axes.set(xlabel="epoch", title=title)
    axes.grid(alpha=0.3)
    return save_figure(figure, path, handles=handles, columns=columns)


def save_figure(
    figure: Any, path: epath.PathLike, *, handles: Sequence[Any] = (), columns: int = 1, dpi: int = 120
) -> epath.PathLike:
    """Writes a figure of matplotlib's, with a legend of `handles` below it if there are any; returns `path`.

    The path, local or remote, gives the format by its suffix. Raises OSError if it cannot be written, ValueError if
    there is no such format.
    """
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize="small")
    picture = io.BytesIO()
    figure.savefig(picture, format=PurePath(path).suffix[1:] or "png", dpi=dpi)
    write_bytes(path, picture.getvalue())
    return path


def plot_curves(workdir: epath.PathLike) -> epath.PathLike:
    """Draws a run's curves to workdir/plots/curves.png; returns that path. Raises OSError if it cannot be written."""
    path = open_path(workdir)
    plots = path / "plots"
    if not is_remote(plots):
        plots.mkdir(exist_ok=True)
    return curves({path.name: [read_metrics(path)]}, plots / "curves.png")


def over_runs(runs: Sequence[Lines], split: str, name: str) -> tuple[list[float], Float[np.ndarray, "runs epochs"]]:
    """(epochs, values) of the runs that have any value, at the epochs that all of these have."""
    series = [
        {line["epoch"]: line[name] for line in lines if line["split"] == split and line.get(name) is not None}
        for lines in runs
    ]
    series = [values for values in series if values] or [{}]
    epochs = sorted(set.intersection(*map(set, series)))
    return epochs, np.array([[values[epoch] for epoch in epochs] for values in series])


def _style(place: int, split: str, points: int) -> dict[str, Any]:
    """How to draw the curve of a split, of `points` points, of the group at a place."""
    colour = COLOURS[place % len(COLOURS)]
    if split == "train":
        return {"color": colour, "linewidth": 0.8, "linestyle": "--", "alpha": 0.7, "marker": "." * (points == 1)}
    # Groups that share a colour differ in the marker.
    marker = MARKERS[(place + place // len(COLOURS)) % len(MARKERS)]
    return {"color": colour, "linewidth": 1.6, "marker": marker, "markersize": 5, "markevery": max(1, points // 12)}


def _legend(groups: Mapping[str, Sequence[Lines]]) -> list[Any]:
    """What the legend shows: each group, then what solid lines, dashed lines and bands mean."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    for place, (name, runs) in enumerate(groups.items()):
        label = terminal.visible(terminal.shortened(name, 100))  # SVG has no control characters
        evaluated = sum(any(line["split"] == "eval" for line in lines) for lines in runs)
        if len(runs) > 1:
            label += f" ({len(runs)} runs" + f", {evaluated} of them evaluated" * (evaluated < len(runs)) + ")"
        elif not evaluated:
            label += " (no evaluation yet)"
        # matplotlib leaves out labels that begin with "_", and takes text between two "$" for mathematics.
        handles.append(Line2D([], [], label=" " + label.replace("$", r"\$"), **_style(place, "eval", 1)))
    handles.append(Line2D([], [], color="grey", linewidth=1.6, label="evaluation"))
    handles.append(Line2D([], [], color="grey", linewidth=0.8, linestyle="--", label="training"))
    if any(len(runs) > 1 for runs in groups.values()):
        handles.append(Patch(color="grey", alpha=0.2, label=BAND))
    return handles
