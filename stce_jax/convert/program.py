"""A run that was exported as a program, loaded for use; `formats.jax` writes it.

Shape letters: B batch, S image side.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.export
import numpy as np
from etils import epath
from jaxtyping import Array, Float, UInt8

from stce_jax.convert.files import DESCRIPTION
from stce_jax.data import crops, resizing
from stce_jax.errors import CheckpointError, ConfigError, shown
from stce_jax.paths import first_line, open_path, parse_json, read_bytes
from stce_jax.workdir.digests import find_damage

PROGRAM = "model.jaxexport"


@dataclasses.dataclass(frozen=True)
class ExportedModel:
    """What `stce export` wrote, ready for use.

    Attributes:
      logits: pixels, red green blue -> logits; compiled once for each B.
      preprocess: an image as `Run.preprocess` takes it -> such pixels of it.
      class_ids: the classes in the order of the logits: names of folders, WordNet ids.
      class_names: the same for people.
      description: all that model.json says.
    """

    logits: Callable[[UInt8[Array | np.ndarray, "B S S 3"]], Float[Array, "B classes"]]
    preprocess: Callable[..., UInt8[np.ndarray, "S S 3"]]
    class_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    description: dict[str, Any]


def load_exported(directory: epath.PathLike) -> ExportedModel:
    """Loads what `stce export` wrote into a directory, local or remote; no run is needed.

    It is a program, which runs as soon as it is called: load only what comes from where you would take a program from.

    Raises:
      ConfigError: there is none.
      CheckpointError: a file is missing, damaged or changed, or this JAX does not read it.
    """
    path = open_path(directory)
    if not (path / DESCRIPTION).exists() and not (path / PROGRAM).exists():
        raise ConfigError(f"{directory} is no exported model; `stce export --output` makes one")
    try:
        damage = find_damage(path)
        content = {} if damage else {name: read_bytes(path / name) for name in (PROGRAM, DESCRIPTION)}
    except OSError as error:
        raise CheckpointError(f"cannot read {directory}: {first_line(error)}; make it readable") from error
    if damage:
        raise CheckpointError(f"the exported model in {directory} is damaged: {damage}; export it again")
    try:
        description = parse_json(content[DESCRIPTION].decode())
        image, version = description["image"], description["versions"]["jax"]
        view = functools.partial(crops.read_view, **_view_of(image))
        class_ids, class_names = (tuple(description[name]) for name in ("class_ids", "class_names"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # whoever wrote the digests, too
        raise CheckpointError(
            f"cannot read {directory}/{DESCRIPTION}: {first_line(error)}; export the model again"
        ) from error
    try:
        program = jax.export.deserialize(bytearray(content[PROGRAM]))
    except Exception as error:  # whatever another version makes of it: the digest says that the file is whole
        raise CheckpointError(
            f"jax {jax.__version__} does not read {directory}/{PROGRAM}, which jax {version} wrote: "
            f"{first_line(error)}; export it again with this version"
        ) from error
    return ExportedModel(
        logits=jax.jit(program.call),
        preprocess=view,
        class_ids=class_ids,
        class_names=class_names,
        description=description,
    )


def _view_of(image: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `crops.read_view` that a description's "image" says; ValueError for an unknown interpolation."""
    interpolation = image.get("interpolation", resizing.INTERPOLATIONS[0])  # earlier exports say none
    if interpolation not in resizing.INTERPOLATIONS:
        raise ValueError(f"there is no interpolation {shown(interpolation)}")
    return {"size": image["size"], "fraction": image["crop_fraction"], "interpolation": interpolation}
