"""What a learning-rate range test tells: a smooth loss, where it diverges, and which rate to take; and its picture.

Shape letters: n steps.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float
from numpy.typing import ArrayLike

from stce_jax.analysis.curves import COLOURS, save_figure

DIVERGED = 4.0  # times the lowest smoothed loss; fastai's bound
MEDIAN_DEVIATION = 0.6745  # of a normal distribution, in standard deviations
SPREAD = 1 / 40  # of the smoothing Gaussian, as a share of all steps


def growing(lowest: float, highest: float, steps: int) -> Float[np.ndarray, "n"]:
    """Rates from `lowest` to `highest`, each the same factor above the one before."""
    return np.geomspace(lowest, highest, steps)


def smoothed(losses: ArrayLike, spread: float) -> Float[np.ndarray, "n"]:
    """Each loss averaged with those around it by a Gaussian, which unlike a moving average moves no feature.

    Args:
      losses: [n], finite.
      spread: the Gaussian's standard deviation in steps, above 0.
    """
    values = np.asarray(losses, np.float64)
    reach = math.ceil(3 * spread)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / spread) ** 2)
    sums, weights = (np.convolve(rows, kernel)[reach : reach + len(values)] for rows in (values, np.ones_like(values)))
    return sums / weights


def has_diverged(losses: ArrayLike, spread: float) -> bool:
    """Whether the last smoothed loss is above `DIVERGED` times the lowest."""
    smooth = smoothed(losses, spread)
    return bool(smooth[-1] > DIVERGED * smooth.min())


def suggest(rates: ArrayLike, losses: ArrayLike, spread: float) -> dict[str, float | None]:
    """Which learning rate to take, by two rules that fastai has, too.

    Args:
      rates, losses: [n] of the steps, rates rising.
      spread: see `smoothed`.

    Returns:
      {"suggestion", "lowest", "steepest"}: lowest is the rate of the lowest smoothed loss, steepest that before it at
      which the loss falls fastest over the logarithm of the rate, suggestion a tenth of lowest, in two digits. All are
      None if the loss does not fall by more than twice what it scatters.
    """
    rates, smooth = np.asarray(rates, np.float64), smoothed(losses, spread)
    place = int(smooth.argmin())
    scatter = np.median(np.abs(np.asarray(losses) - smooth)) / MEDIAN_DEVIATION  # few steps that diverge do not count
    if place < 2 or smooth[0] - smooth[place] <= 2 * scatter:
        return {"suggestion": None, "lowest": None, "steepest": None}
    slopes = np.gradient(smooth[: place + 1], np.log(rates[: place + 1]))
    return {
        "suggestion": float(f"{rates[place] / 10:.1e}"),
        "lowest": float(rates[place]),
        "steepest": float(rates[slopes.argmin()]),
    }


def draw(found: Mapping[str, Any], path: epath.PathLike) -> epath.PathLike:
    """Draws the loss over the learning rate, and what it suggests; returns `path`, see `save_figure`.

    Args:
      found: {"learning_rates", "losses", "smoothed"}, numbers of each step, and the entries of `suggest`.
      path: of the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    rates = found["learning_rates"]
    axes.plot(rates, found["losses"], ".", color="grey", markersize=3, label="loss of a step")
    axes.plot(rates, found["smoothed"], color=COLOURS[0], linewidth=1.8, label="smoothed")
    lines: Sequence[tuple[str, str, str]] = (
        ("suggestion", "-", "suggested, a tenth of the lowest"),
        ("steepest", ":", "falls fastest"),
        ("lowest", "--", "lowest"),
    )
    for place, (name, style, label) in enumerate(lines, 1):
        if found[name] is not None:
            axes.axvline(found[name], color=COLOURS[place], linestyle=style, label=f"{label}: {found[name]:.2g}")
    axes.set(xscale="log", xlabel="config.optimizer.learning_rate", ylabel="training loss")
    if found["suggestion"] is not None:  # where it diverges the loss is too large for the fall to be seen beside it
        start, lowest = found["smoothed"][0], min(found["smoothed"])
        axes.set_ylim(lowest - 0.3 * (start - lowest), start + (start - lowest))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="upper left")
    return save_figure(figure, path)
