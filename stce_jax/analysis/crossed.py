"""Differences of models over seeds and images at once, and what several of them allow to say together.

A result holds for other seeds and other images only if both count as drawn. `intervals` has either by itself.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats


class Crossed(NamedTuple):
    """The mean of a difference that was measured with several seeds on the same images.

    Attributes:
      mean: of all seeds and images.
      error: its standard error, seeds and images both drawn.
      freedom: degrees of freedom of Student's t; inf where the seeds add nothing.
      p_value: two-sided, of no difference.
    """

    mean: float
    error: float
    freedom: float
    p_value: float

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """(low, high), symmetric about the mean; `confidence` above 0 and below 1."""
        half = float(stats.t.ppf((1 + confidence) / 2, self.freedom)) * self.error
        return self.mean - half, self.mean + half


def crossed_mean(values: Float[np.ndarray, "seeds images"]) -> Crossed:
    """The mean of a difference over seeds and images, both of them samples.

    The variance of the mean is estimated from the mean squares of seeds, images and their interaction, as for readers
    and cases in radiology, (MS(seeds) + max(MS(images) - MS(both), 0)) / (seeds x images), with Hillis's degrees of
    freedom. MS(seeds), which two or three seeds can make small by chance, counts as MS(both) at least, which is no more
    than its expectation: so the interval is never narrower than the one over images alone, the seeds averaged.

    Args:
      values: of each seed and image, such as the hits of one model less those of another: at least 2 of each.

    Raises:
      ValueError: there are fewer.

    Source: Dorfman, Berbaum and Metz, Receiver operating characteristic rating analysis, 1992; Hillis, A comparison of
    denominator degrees of freedom methods for multiple observer ROC analysis, 2007.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or min(values.shape) < 2:
        raise ValueError(f"values must be [seeds, images], at least two of each, not {values.shape}")
    seeds, images = values.shape
    mean, of_seeds, of_images = float(values.mean()), values.mean(axis=1), values.mean(axis=0)
    rest = values - of_seeds[:, None] - of_images[None, :] + mean
    both = float((rest**2).sum()) / ((seeds - 1) * (images - 1))
    by_seeds = max(images * float(of_seeds.var(ddof=1)), both)
    beyond = max(seeds * float(of_images.var(ddof=1)) - both, 0.0)
    error = math.sqrt((by_seeds + beyond) / (seeds * images))
    if error == 0:  # the same difference everywhere
        return Crossed(mean, 0.0, math.inf, 1.0 if mean == 0 else 0.0)
    # Where seeds and images do not interact at all, seeds add nothing.
    freedom = (by_seeds + beyond) ** 2 / (by_seeds**2 / (seeds - 1)) if by_seeds else math.inf
    return Crossed(mean, error, freedom, float(2 * stats.t.sf(abs(mean) / error, freedom)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values corrected for their number by Holm's method: below alpha is significant at alpha, whichever are true.

    Args:
      p_values: 0..1; None for a comparison that is planned and not yet made. It counts as one that says nothing, so
        that what is made later cannot undo what was said.

    Returns:
      The corrected values in the same order, at most 1, None for None.

    Raises:
      ValueError: a value is out of range.

    Source: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    for value in p_values:
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"p values lie between 0 and 1, not {value}")
    corrected: list[float | None] = [None] * len(p_values)
    known = sorted((value, place) for place, value in enumerate(p_values) if value is not None)
    largest = 0.0
    for number, (value, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(p_values) - number) * value))
        corrected[place] = largest
    return corrected
