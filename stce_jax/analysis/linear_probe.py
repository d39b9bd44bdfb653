"""Logistic regression on a model's features: what a frozen model knows of classes that it was not trained for.

Shape letters: n images, D features, K classes.
"""

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

STRENGTHS = tuple(10.0**power for power in range(-4, 4))  # C, the inverse of the penalty, of standardised features
_STEPS = 300  # of L-BFGS at most


@dataclasses.dataclass(frozen=True)
class Probe:
    """A fitted linear probe.

    Attributes:
      kernel, bias: `features @ kernel + bias` are the logits.
      strength: C, the inverse strength of the L2 penalty, in scikit-learn's unit.
      held_out: {C: top-1 of the images that were held out to choose it}, a fraction.
    """

    kernel: Float[np.ndarray, "D K"]
    bias: Float[np.ndarray, "K"]
    strength: float
    held_out: dict[float, float]

    def hits(self, features: Float[np.ndarray, "n D"], labels: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
        """Whether the likeliest class of each image is its own."""
        return np.argmax(features @ self.kernel + self.bias, axis=1) == labels


def fit_probe(
    features: Float[np.ndarray, "n D"],
    labels: Int[np.ndarray, "n"],
    held: Bool[np.ndarray, "n"],
    classes: int,
    strengths: Sequence[float] = STRENGTHS,
) -> Probe:
    """Fits a probe: the penalty is chosen on the images that are held out, then all are fitted.

    Of penalties that are equally good, the strongest is taken.

    Args:
      features: finite numbers.
      labels: 0..K - 1; every class is there with and without the images that are held out.
      held: which images choose the penalty.
      classes: K, at least 2.
      strengths: values of C to choose from, rising.
    """
    found = {}
    for strength in strengths:
        kernel, bias = _fit(features[~held], labels[~held], classes, strength)
        found[strength] = float(np.mean(np.argmax(features[held] @ kernel + bias, axis=1) == labels[held]))
    chosen = max(strengths, key=lambda strength: found[strength])  # the first of equal ones
    return Probe(*_fit(features, labels, classes, chosen), chosen, found)


def _fit(
    features: Float[np.ndarray, "n D"], labels: Int[np.ndarray, "n"], classes: int, strength: float
) -> tuple[Float[np.ndarray, "D K"], Float[np.ndarray, "K"]]:
    """(kernel, bias) for features as they are; the fit itself sees standardised ones."""
    from sklearn.exceptions import ConvergenceWarning  # here, for scikit-learn takes a second to import
    from sklearn.linear_model import LogisticRegression

    mean, spread = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    spread[spread < 1e-12] = 1.0  # a feature that is always the same says nothing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a weak penalty need not be fitted to its end
        model = LogisticRegression(C=strength, max_iter=_STEPS).fit((features - mean) / spread, labels)
    kernel, bias = np.asarray(model.coef_, np.float64), np.asarray(model.intercept_, np.float64)
    if classes == 2:  # scikit-learn then has one logit, of the second class
        kernel, bias = np.concatenate([0 * kernel, kernel]), np.concatenate([0 * bias, bias])
    kernel = kernel.T / spread[:, None]
    return kernel.astype(np.float32), (bias - mean @ kernel).astype(np.float32)
