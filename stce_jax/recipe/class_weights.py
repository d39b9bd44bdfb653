"""Weights of classes in the training loss, for data sets whose classes have different numbers of images.

Shape letters: K classes.
"""

import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from stce_jax.errors import LONGEST_TEXT, ConfigError, check_range, shown
from stce_jax.platform.csv_rows import read_rows

BALANCED, EFFECTIVE, SUFFIX = "balanced", "effective:", ".csv"
HEADER = ["class_id", "weight"]  # first line of a file; it may be missing
LARGEST = 1e6
_MAX_BYTES = 2**24


def check_options(*, class_weights: str) -> None:
    """Raises ConfigError for `config.class_weights` that fit no data set; a file is not read."""
    text = isinstance(class_weights, str) and len(class_weights) <= LONGEST_TEXT and "\0" not in class_weights
    if text and class_weights.startswith(EFFECTIVE):
        _beta(class_weights)
    elif not text or (class_weights not in ("", BALANCED) and not class_weights.endswith(SUFFIX)):
        raise ConfigError(
            f"config.class_weights is {shown(class_weights)}; it must be {BALANCED}, {EFFECTIVE}BETA, such as "
            f"{EFFECTIVE}0.999, or a {SUFFIX} file with a line `class id,weight` for each class"
        )


def make_class_weights(
    class_weights: str, counts: Int[np.ndarray, "K"], class_ids: Sequence[str]
) -> Float[np.ndarray, "K"]:
    """The weight of each class.

    "balanced" is images / (classes x images of the class), as scikit-learn has it. "effective:BETA" is proportional to
    (1 - BETA) / (1 - BETA^images of the class) (Cui et al. 2019, Class-Balanced Loss Based on Effective Number of
    Samples, equation 2): no weighting at BETA 0, "balanced" as BETA goes to 1. The mean of both over the images is 1,
    so that the loss keeps its size. Weights of a file are taken as they are.

    Args:
      class_weights: see `check_options`; not "".
      counts: training images of each class, at least one.
      class_ids: of the classes, by which a file names them.

    Raises:
      ConfigError: the file cannot be read, or does not give each class one weight above 0.
    """
    if class_weights == BALANCED:
        own = 1.0 / counts
    elif class_weights.startswith(EFFECTIVE):
        beta = _beta(class_weights)
        own = (1.0 - beta) / -np.expm1(counts * np.log(beta)) if beta else np.ones(len(counts))
    else:
        return _read(class_weights, class_ids)
    return own * counts.sum() / (own * counts).sum()


def _beta(class_weights: str) -> float:
    try:
        beta = float(class_weights.removeprefix(EFFECTIVE))
    except ValueError:
        raise ConfigError(
            f"config.class_weights is {shown(class_weights)}; it must be {EFFECTIVE}BETA, such as {EFFECTIVE}0.999"
        ) from None
    check_range("BETA of config.class_weights", beta, 0, 1, below=True)
    return beta


def _read(path: str, class_ids: Sequence[str]) -> Float[np.ndarray, "K"]:
    """The weights of a file, in the order of the classes."""
    try:
        rows = list(read_rows(os.path.expanduser(path), _MAX_BYTES))
    except OSError as error:
        raise ConfigError(f"cannot read the class weights {path}: {error.strerror}; give another file") from error
    known, weights = set(class_ids), {}
    for number, row in rows:
        if number == 1 and [cell.strip() for cell in row] == HEADER:
            continue
        if len(row) != 2:
            raise ConfigError(f"{path}, line {number}: there are {len(row)} values; write `class id,weight`")
        class_id, weight = (cell.strip() for cell in row)
        if class_id not in known:
            raise ConfigError(f"{path}, line {number}: the data have no class {shown(class_id)}; take the line out")
        if class_id in weights:
            raise ConfigError(f"{path}, line {number}: class {shown(class_id)} is there twice; remove one")
        try:
            weights[class_id] = float(weight)
        except ValueError:
            weights[class_id] = float("nan")
        if not 0 < weights[class_id] <= LARGEST:
            raise ConfigError(
                f"{path}, line {number}: the weight is {shown(weight)}; it must be above 0 and at most {LARGEST:g}"
            )
    missing = [class_id for class_id in class_ids if class_id not in weights]
    if missing:
        raise ConfigError(f"{path} has no weight for class {shown(missing[0])}; add a line `class id,weight`")
    return np.array([weights[class_id] for class_id in class_ids])
