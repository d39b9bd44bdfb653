"""Learning curves: a colour and a marker for each group of runs, its mean over the runs and the band they lie in."""

import io
from pathlib import PurePath

import numpy as np

from stce_jax.paths import is_remote, open_path, write_bytes
from stce_jax.workdir.metrics import read_metrics

# Of Okabe and Ito's colours, which differ for every kind of colour vision, those that can be seen on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#000000", "#CC79A7")
MARKERS = "os^DvPX"
BAND = "band: least to most of the runs"


def curves(groups, path):
    """Draws loss (left) and top-1 (right) over epochs: evaluation solid with markers, training thin and dashed.

    A group of several runs, such as seeds of one model, is drawn as their mean and a band from the least to the most of
    them, at the epochs that all of them have that have any: so the mean is of the same runs everywhere.

    Args:
      groups: {label: [lines of one run, ...]}, lines as `read_metrics` gives them. A group keeps its colour in both
        panels, and in every figure in which it has the same place.
      path: of the picture, local or remote; its suffix says the format, such as .png, .svg or .pdf.

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
    panels = (("loss", "loss", 1), ("top1", "top-1 (%)", 100))
    for axes, (name, title, factor) in zip(figure.subplots(1, 2), panels, strict=True):
        for place, (label, runs) in enumerate(groups.items()):
            for split in ("train", "eval"):
                epochs, values = _over_runs(runs, split, name)
                style = _style(place, split, len(epochs))
                axes.plot(epochs, factor * values.mean(0), label=f"{label} {split}", **style)
                if split == "eval" and len(values) > 1:
                    band = factor * values.min(0), factor * values.max(0)
                    axes.fill_between(epochs, *band, color=style["color"], alpha=0.2, linewidth=0)
        axes.set(xlabel="epoch", title=title)
        axes.grid(alpha=0.3)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize="small")
    picture = io.BytesIO()
    figure.savefig(picture, format=PurePath(path).suffix[1:] or "png", dpi=120)
    write_bytes(path, picture.getvalue())
    return path


def plot_curves(workdir):
    """Draws loss and top-1 over epochs, training and evaluation, to workdir/plots/curves.png; returns that path."""
    workdir = open_path(workdir)
    plots = workdir / "plots"
    if not is_remote(plots):
        plots.mkdir(exist_ok=True)
    return curves({workdir.name: [read_metrics(workdir)]}, plots / "curves.png")


def _over_runs(runs, split, name):
    """(epochs, values [runs, epochs]) of the runs that have any value, at the epochs that all of these have."""
    series = [
        {line["epoch"]: line[name] for line in lines if line["split"] == split and line[name] is not None}
        for lines in runs
    ]
    series = [values for values in series if values] or [{}]
    epochs = sorted(set.intersection(*map(set, series)))
    return epochs, np.array([[values[epoch] for epoch in epochs] for values in series])


def _style(place, split, points):
    """How to draw the curve of a split of the group at a place."""
    colour = COLOURS[place % len(COLOURS)]
    if split == "train":
        return {"color": colour, "linewidth": 0.8, "linestyle": "--", "alpha": 0.7, "marker": "." * (points == 1)}
    # Groups whose colours are used up twice differ in the marker.
    marker = MARKERS[(place + place // len(COLOURS)) % len(MARKERS)]
    return {"color": colour, "linewidth": 1.6, "marker": marker, "markersize": 5, "markevery": max(1, points // 12)}


def _legend(groups):
    """What the legend shows: each group, then what solid, dashed and bands mean."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = []
    for place, (label, runs) in enumerate(groups.items()):
        evaluated = sum(any(line["split"] == "eval" for line in lines) for lines in runs)
        if len(runs) > 1:
            label += f" ({len(runs)} runs" + f", {evaluated} of them evaluated" * (evaluated < len(runs)) + ")"
        elif not evaluated:
            label += " (no evaluation yet)"
        # matplotlib leaves out what begins with "_", and sets as mathematics what stands between two "$".
        handles.append(Line2D([], [], label=" " + label.replace("$", r"\$"), **_style(place, "eval", 1)))
    handles.append(Line2D([], [], color="grey", linewidth=1.6, label="evaluation"))
    handles.append(Line2D([], [], color="grey", linewidth=0.8, linestyle="--", label="training"))
    if any(len(runs) > 1 for runs in groups.values()):
        handles.append(Patch(color="grey", alpha=0.2, label=BAND))
    return handles
