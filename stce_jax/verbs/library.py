"""Which library a CPU computes with: oneDNN where there is enough to compute, see `platform.cpu_library`."""

import contextlib
from typing import Any

from stce_jax.analysis.costs import count_model, count_parameters
from stce_jax.platform.cpu_library import ENOUGH_WORK, chosen_for

Library = contextlib.AbstractContextManager[bool]
BACKWARD = 2.0  # times the multiply-adds of the forward pass


def for_training(config: Any, dataset: Any, model: Any) -> Library:
    """The context in which a run trains.

    Args:
      config, dataset: a run's.
      model: its body; of a run by `config.minutes` it does not count, nor do its epochs, which are not known yet.
    """
    if config.model.dtype not in (None, "float32"):
        return chosen_for(0.0)
    if config.minutes:
        return chosen_for(config.minutes * ENOUGH_WORK)
    images = config.epochs * len(dataset.train)
    return chosen_for((1.0 + BACKWARD) * count_model(model, config.image_size)["multiply_adds"] * images)


def for_inference(run: Any, images: int) -> Library:
    """The context in which a run's model computes so many images."""
    if run.config.model.dtype not in (None, "float32"):
        return chosen_for(0.0)
    # No parameter is multiplied more often than there are places at stride 2. Counting takes half a second.
    most = count_parameters(run.variables["params"]) * run.config.image_size**2 / 4.0 * images
    if most < ENOUGH_WORK:
        return chosen_for(most)
    return chosen_for(float(count_model(run.model, run.config.image_size)["multiply_adds"]) * images)
