"""How images become what a run's model sees in evaluation: the view's options and the normalisation, of its config."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import config_dict

from stce_jax.data import crops, resizing
from stce_jax.data.dataset import Dataset
from stce_jax.data.forms import ImageLike
from stce_jax.recipe import augment


def view_options(config: config_dict.ConfigDict) -> dict[str, Any]:
    """{"size", "fraction", "interpolation"} of the evaluation's view, see `crops.center_crop`."""
    return {
        "size": config.image_size,
        "fraction": config.augment.eval_crop_fraction,
        "interpolation": config.augment.eval_interpolation or resizing.INTERPOLATIONS[0],
    }


def with_normalization(dataset: Dataset, config: config_dict.ConfigDict) -> Dataset:
    """The dataset with the mean and std of the config, where that has any."""
    mean, std = config.augment.mean, config.augment.std
    if mean is not None:
        dataset = dataclasses.replace(dataset, mean=_three(mean))
    return dataset if std is None else dataclasses.replace(dataset, std=_three(std))


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def preprocess(
    image: ImageLike, *, mean: Sequence[float], std: Sequence[float], **view: Any
) -> Float[np.ndarray, "S S 3"]:
    """What the model is given of an image in any form of `decode.pixels_of`; `view` is of `view_options`."""
    return np.asarray(augment.normalize(crops.read_view(image, **view), mean=mean, std=std))
