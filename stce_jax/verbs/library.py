"""Which library a CPU computes with: oneDNN where there is enough to compute, see `platform.cpu_library`."""

import contextlib
from typing import Any

from stce_jax.analysis.costs import count_model, count_parameters
from stce_jax.platform.backends import has_one_cpu
from stce_jax.platform.cpu_library import ENOUGH_WORK, chosen_for

Library = contextlib.AbstractContextManager[bool]
BACKWARD = 2.0  # times the multiply-adds of the forward pass
EPOCHS = 10  # that count of any run: one that goes on for more epochs, or by a plan, computes as it began


def for_training(config: Any, dataset: Any, model: Any) -> Library:
    """The context in which a run trains: chosen by its model and images, which stay what they are when it goes on.

    Args:
      config, dataset: a run's.
      model: its body.
    """
    if not _may_choose(config):
        return chosen_for(0.0)
    images = EPOCHS * len(dataset.train)
    return chosen_for((1.0 + BACKWARD) * count_model(model, config.image_size)["multiply_adds"] * images)


def for_inference(run: Any, images: int) -> Library:
    """The context in which a run's model computes so many images."""
    if not _may_choose(run.config):
        return chosen_for(0.0)
    # Counting takes half a second. Few models multiply a parameter more often than there are places at stride 2.
    roughly = count_parameters(run.variables["params"]) * run.config.image_size**2 / 4.0 * images
    if roughly < ENOUGH_WORK:
        return chosen_for(0.0)
    return chosen_for(float(count_model(run.model, run.config.image_size)["multiply_adds"]) * images)


def _may_choose(config: Any) -> bool:
    return config.model.dtype in (None, "float32") and has_one_cpu()
