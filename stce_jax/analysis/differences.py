"""Differences with their intervals, one below the other."""

from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from stce_jax.analysis.curves import COLOURS, save_figure
from stce_jax.platform import terminal


class Line(NamedTuple):
    """A difference, in the unit of the axis.

    Attributes:
      label: what it is of.
      mean, low, high: the difference and the ends of its interval.
      group: lines of one group share a colour.
    """

    label: str
    mean: float
    low: float
    high: float
    group: int = 0


def forest(lines: Sequence[Line], axis: str, path: epath.PathLike, *, margin: float | None = None) -> epath.PathLike:
    """Draws a line for each difference, the first on top.

    Args:
      lines: at least one.
      axis: what is on the axis.
      path: of the picture, local or remote; its suffix gives the format.
      margin: a dotted line there: what a difference must reach to matter.

    Returns:
      `path`.

    Raises:
      OSError: it cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.1 + 0.32 * len(lines)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="grey", linewidth=1)
    if margin is not None:
        axes.axvline(margin, color="grey", linewidth=1, linestyle=":")
    for place, line in enumerate(lines):
        colour = COLOURS[line.group % len(COLOURS)]
        axes.plot([line.low, line.high], [place, place], color=colour, linewidth=1.6)
        axes.plot([line.mean], [place], color=colour, marker="o", markersize=5)
    labels = [terminal.visible(line.label).replace("$", r"\$") for line in lines]
    axes.set_yticks(range(len(lines)), labels=labels, fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel(axis)
    axes.grid(alpha=0.3, axis="x")
    return save_figure(figure, path, dpi=110)
