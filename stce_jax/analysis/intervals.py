"""How sure a comparison is: intervals over seeds and over images, and tests of two models on the same images.

NumPy and SciPy alone. "Hits" are 1 (or True) where a model's top-1 is right and 0 where it is not.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from scipy import stats

CHUNK = 2**22  # counts that the bootstrap holds at a time, 32 MB


class Interval(NamedTuple):
    """An estimate and its confidence interval.

    Attributes:
      mean: the estimate.
      low, high: ends of the interval; nan where there is none.
    """

    mean: float
    low: float
    high: float


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of runs that differ in their seed, with Student's t interval.

    Args:
      values: [seeds], one number a run; of a single one, low and high are nan.
      confidence: how often such intervals hold the true mean, above 0 and below 1.

    Raises:
      ValueError: there is no value, or more than one axis.
    """
    _check_confidence(confidence)
    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1 or not len(numbers):
        raise ValueError(f"values must be one number a seed, at least one, not of shape {numbers.shape}")
    mean, count = float(numbers.mean()), len(numbers)
    if count == 1:
        return Interval(mean, np.nan, np.nan)
    half = float(stats.t.ppf((1 + confidence) / 2, count - 1) * numbers.std(ddof=1) / np.sqrt(count))
    return Interval(mean, mean - half, mean + half)


def paired_mean_interval(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> Interval:
    """`mean_interval` of the differences first - second of runs with the same seeds, both [seeds].

    Seeds that make both runs better or worse cancel, which makes it narrower than two separate intervals.

    Args:
      first, second: [seeds], one number a run, the same seeds in the same order.
      confidence: see `mean_interval`.

    Raises:
      ValueError: there is no value, or not one of `second` for each of `first`.
    """
    left, right = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if left.shape != right.shape:
        raise ValueError(f"there must be the same seeds in both, not {left.shape} and {right.shape}")
    return mean_interval(left - right, confidence)


def bootstrap_difference(
    first_hits: ArrayLike,
    second_hits: ArrayLike,
    *,
    draws: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
    over: Sequence[str] = ("images",),
) -> Interval:
    """Difference of two models' accuracies on the same images, with the percentile interval of the paired bootstrap.

    Each draw takes as many images as there are, with replacement, the same for both models, and averages over them and
    over the seeds. With "seeds" in `over` it first resamples seeds, too, the same for both: the interval then holds for
    other seeds as well. Of few seeds that is too narrow; see `paired_mean_interval`.

    Images on which the models differ in the same way are exchangeable. So a draw is the number of images of each kind,
    multinomial, and not a list of images: the same distribution from far fewer numbers.

    Args:
      first_hits, second_hits: bool or float [seeds, images] or [images], the same images in the same order. Without
        "seeds" in `over` their numbers of seeds may differ.
      draws: number of resamplings.
      seed: of the random numbers; the same seed gives the same interval.
      confidence: see `mean_interval`.
      over: what is resampled: ("images",) or ("seeds", "images").

    Returns:
      `Interval` of the accuracy of `first` less that of `second`, fractions from -1 to 1.

    Raises:
      ValueError: there are no images, or not the same in both.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (the percentile interval).
    """
    _check_confidence(confidence)
    if tuple(over) not in (("images",), ("seeds", "images")):
        raise ValueError(f"over must be ('images',) or ('seeds', 'images'), not {over!r}")
    first, second = (np.atleast_2d(np.asarray(hits, np.float64)) for hits in (first_hits, second_hits))
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"hits must be [seeds, images] of the same images, not {first.shape} and {second.shape}")
    if not first.size or not second.size:
        raise ValueError("there are no images to compare on")
    if "seeds" not in over:
        difference = first.mean(0, keepdims=True) - second.mean(0, keepdims=True)  # [1, images]
    elif len(first) != len(second):
        raise ValueError(f"seeds that are resampled must be the same in both, not {len(first)} and {len(second)}")
    else:
        difference = first - second  # [seeds, images]

    kinds, frequencies = _kinds(difference)
    seeds, images = difference.shape
    rng, means = np.random.default_rng(seed), []
    chunk = max(1, CHUNK // len(frequencies))
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        counts = rng.multinomial(images, frequencies / images, size)  # [size, kinds]
        of_seeds = counts @ kinds.T / images  # [size, seeds]
        weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size)  # [size, seeds]; all 1 for one seed
        means.append((weights * of_seeds).mean(1))
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(difference.mean()), float(low), float(high))


def _kinds(
    difference: Float[np.ndarray, "seeds images"],
) -> tuple[Float[np.ndarray, "seeds kinds"], Int[np.ndarray, "kinds"]]:
    """The distinct columns, and how often each occurs.

    They are in the order of their first image, which is that of the negated differences, too: so swapping the models
    negates every draw.
    """
    _, places, frequencies = np.unique(difference, axis=1, return_index=True, return_counts=True)
    order = np.argsort(places)
    return difference[:, places[order]], frequencies[order]


def mcnemar(first_hits: ArrayLike, second_hits: ArrayLike) -> tuple[int, int, float]:
    """McNemar's exact test of whether two models, each one run, are right equally often on the same images.

    Args:
      first_hits, second_hits: bool [images], the same images in the same order.

    Returns:
      (images that only the first has right, images that only the second has right, two-sided p value): the chance that
      fair coins split these images at least as unevenly, 1.0 if there are none.

    Raises:
      ValueError: they are not [images] of the same images, or there are none.

    Source: McNemar, Note on the sampling error of the difference between correlated proportions, 1947.
    """
    first, second = np.asarray(first_hits, bool), np.asarray(second_hits, bool)
    if first.ndim != 1 or first.shape != second.shape or not len(first):
        raise ValueError(
            f"hits must be [images] of the same images, at least one, not {first.shape} and {second.shape}"
        )
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if not only_first + only_second:
        return 0, 0, 1.0
    return only_first, only_second, float(stats.binomtest(only_first, only_first + only_second).pvalue)


def wilson_interval(hits: int, count: int, confidence: float = 0.95) -> Interval:
    """Accuracy of one run, a fraction, with Wilson's score interval: what the finite number of images leaves open.

    Args:
      hits: how many images are right, 0 to `count`.
      count: how many images there are, at least 1.
      confidence: see `mean_interval`.

    Raises:
      ValueError: there are no images, or `hits` is out of range.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, 1927.
    """
    _check_confidence(confidence)
    if not 0 <= hits <= count or count < 1:
        raise ValueError(f"{hits} hits of {count} images are impossible")
    low, high = stats.binomtest(int(hits), int(count)).proportion_ci(confidence, "wilson")
    return Interval(hits / count, float(low), float(high))


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not be {confidence}")
