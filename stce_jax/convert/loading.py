"""Weights of anybody as a model with its variables, for use in Python."""

import dataclasses
from typing import Any

import numpy as np
from etils import epath

from stce_jax.convert.initial import fit_all
from stce_jax.convert.preprocessing import Preprocessing
from stce_jax.convert.sources import open_source
from stce_jax.errors import ConfigError
from stce_jax.models.bodies import Body
from stce_jax.training.state import abstract_variables
from stce_jax.workdir.weights import unflatten


@dataclasses.dataclass(frozen=True)
class LoadedWeights:
    """A model with weights, and what is known of them.

    Attributes:
      model: a body, see `models.bodies`; `model.apply(variables, images, train=False)` gives logits [B, classes].
      variables: parameters and BatchNorm statistics, on the host.
      class_ids, class_names: the classes in the order of the logits; () for weights without a head, or whose classes
        are not known.
      preprocessing: what the weights' images were; None in it for what is not known.
      said: what was recognised, adapted and left out, in one line.
      left_out: names of all arrays of the source that are no part of the model, of which `said` has the first few.
    """

    model: Body
    variables: dict[str, Any]
    class_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    said: str
    left_out: tuple[str, ...] = ()


def load_weights(
    source: epath.PathLike,
    *,
    model: Body | None = None,
    image_size: int | tuple[int, int] | None = None,
    **options: Any,
) -> LoadedWeights:
    """Loads weights of this package or another library, see "In" of docs/weights.md.

    Args:
      source: a workdir of `stce train`, a .safetensors or .npz file, a folder of the Hugging Face hub or of
        `stce export`.
      model: the model that they are for, of `create_model`; needed for files in this package's names, which do not say
        of which model they are. By default that of the source.
      image_size: side of the images in pixels, or (height, width); by default the source's. Positions are resampled.
      **options: of the model, as `create_model` takes them, in place of the source's, such as heads=3.

    Returns:
      The model and its variables; no array of the model is new.

    Raises:
      ConfigError: there is no such source, or no model has these options; or both a model and options were given.
      CheckpointError: it is damaged, of no known layout, or does not fit.

    Example:
      >>> loaded = load_weights("downloads/deit_small_patch16_224")
      >>> logits = loaded.model.apply(loaded.variables, images, train=False)
    """
    if model is not None and (options or image_size is not None):
        raise ConfigError("give either a model or options of the source's own, not both")
    own: Any = model
    opened = open_source(source, options if own is None else own.unshaped_options())
    if model is None and opened.model is not None:
        if options:
            raise ConfigError(f"{source} is a run, which has its options; leave out {', '.join(options)}")
        own = opened.model
        model = own.clone(image_size=_pair(image_size or own.image_size))
    if model is None:
        model = opened.build(image_size, **options)
    found, said = fit_all(opened, model, abstract_variables(model, model.image_size[0]), given=options)
    ids, names = (opened.labels.ids, opened.labels.names) if opened.labels is not None else ((), ())
    variables = unflatten({path: np.asarray(array) for path, array in found.items()})
    return LoadedWeights(model, variables, ids, names, opened.preprocessing, said, opened.left_out)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
