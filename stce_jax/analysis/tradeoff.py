"""Accuracy over cost: a line for each method through its settings, with the interval of every accuracy."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from stce_jax.analysis.curves import COLOURS, MARKERS, save_figure
from stce_jax.platform import terminal


class Point(NamedTuple):
    """One setting of a method.

    Attributes:
      cost: in the unit of the axis, above 0.
      mean, low, high: accuracy and its interval, fractions; low and high are nan where there is none.
    """

    cost: float
    mean: float
    low: float
    high: float


def tradeoff(
    panels: Mapping[str, Mapping[str, Sequence[Point]]], path: epath.PathLike, *, cost: str, whole: str
) -> epath.PathLike:
    """Draws accuracy over cost.

    Args:
      panels: {title: {method: its points}}; a method keeps its colour and marker in all panels.
      path: of the picture, local or remote; its suffix gives the format.
      cost: label of the cost's axis.
      whole: the method that is a single point to compare with, drawn as a line across.

    Returns:
      `path`.
    """
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(name for groups in panels.values() for name in groups))
    figure = Figure(figsize=(5.2 * len(panels), 5.2), layout="constrained")
    handles: dict[str, Any] = {}
    for axes, (title, groups) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, points in groups.items():
            place = methods.index(name)
            colour = COLOURS[place % len(COLOURS)]
            marker = MARKERS[(place + place // len(COLOURS)) % len(MARKERS)]
            ordered = sorted(points)
            line = axes.errorbar(
                [point.cost for point in ordered],
                [100 * point.mean for point in ordered],
                yerr=[
                    [max(0.0, 100 * (point.mean - point.low)) for point in ordered],
                    [max(0.0, 100 * (point.high - point.mean)) for point in ordered],
                ],
                color=colour,
                marker=marker,
                markersize=5,
                linewidth=1.2,
                capsize=2,
                elinewidth=0.8,
            )
            if name == whole:
                axes.axhline(100 * ordered[0].mean, color=colour, linewidth=0.8, linestyle="--")
            handles.setdefault(terminal.visible(terminal.shortened(name, 100)), line)
        axes.set(xlabel=cost, ylabel="top-1 (%)", title=title)
        axes.grid(alpha=0.3)
    for name, handle in handles.items():
        handle.set_label(" " + name.replace("$", r"\$"))
    return save_figure(figure, path, handles=list(handles.values()), columns=4)
