"""What a config has its steps minimise and count.

Shape letters: K classes.
"""

import functools

import numpy as np
from jaxtyping import Float
from ml_collections import config_dict

from stce_jax.data import catalog
from stce_jax.data.dataset import Dataset
from stce_jax.data.labels import class_counts, labels_of
from stce_jax.recipe.class_weights import make_class_weights
from stce_jax.recipe.losses import soft_target_cross_entropy
from stce_jax.recipe.objectives import MULTI_LABEL, SINGLE_LABEL, Objective

OBJECTIVES = {catalog.SINGLE_LABEL: SINGLE_LABEL, catalog.MULTI_LABEL: MULTI_LABEL}  # by config.task


def class_weights(config: config_dict.ConfigDict, dataset: Dataset) -> Float[np.ndarray, "K"] | None:
    """The weight of each class in the training loss, see `make_class_weights`; None: all alike."""
    if not config.class_weights:
        return None
    counts = class_counts(labels_of(dataset), dataset.class_ids)
    return make_class_weights(config.class_weights, counts, dataset.class_ids)


def build_objective(config: config_dict.ConfigDict, weights: Float[np.ndarray, "K"] | None = None) -> Objective:
    """What a config's steps compute; its training loss with weights of `class_weights`."""
    if weights is None:
        return OBJECTIVES[config.task]
    return SINGLE_LABEL._replace(loss=functools.partial(soft_target_cross_entropy, class_weights=weights))
