"""The weights of `config.init_from`, with which a new run begins, and the preprocessing that follows them."""

from pathlib import Path
from typing import Any

import numpy as np

from stce_jax.convert.following import follow, keep
from stce_jax.convert.initial import read_weights
from stce_jax.convert.sources import Source, open_source
from stce_jax.models.bodies import Body
from stce_jax.processes.speaking import warn
from stce_jax.training.preprocessing import with_normalization
from stce_jax.training.state import abstract_variables
from stce_jax.workdir import layout


def follow_weights(
    config: Any, workdir: str | Path, dataset: Any, known: dict[str, Any]
) -> tuple[Any, Any, Source | None, list[str]]:
    """(config and dataset with the preprocessing of `init_from`'s weights, those weights, what follows them in words).

    There are no weights if a run resumes. `known` are options of the run's model, for what files do not tell.
    """
    if not config.init_from:
        return config, dataset, None, []
    if layout.has_checkpoint(workdir):
        config = keep(config, layout.read_config(workdir))
        return config, with_normalization(dataset, config), None, []
    source = open_source(config.init_from, known)
    config, followed, differing = follow(config, source.preprocessing, dataset.mean, dataset.std)
    if differing:
        warn(f"note: {'; '.join(differing)}")
    return config, with_normalization(dataset, config), source, followed


def first_weights(config: Any, source: Source | None, model: Body, dataset: Any) -> tuple[dict[str, np.ndarray], str]:
    """(arrays of `init_from` that replace a new run's random ones, which they are); ({}, "") without weights."""
    if source is None:
        return {}, ""
    expected = abstract_variables(model, config.image_size)
    return read_weights(source, expected, model, dataset.class_ids)
