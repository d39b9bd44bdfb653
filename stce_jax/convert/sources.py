"""Weights of anybody, opened: a run, a file or folder of this package, or of another library whose layout is known."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from stce_jax.convert import files, labels, layouts
from stce_jax.convert import preprocessing as seeing
from stce_jax.convert.labels import Labels
from stce_jax.convert.preprocessing import Preprocessing
from stce_jax.errors import CheckpointError, ConfigError, StceError, shown
from stce_jax.models.bodies import Body
from stce_jax.models.bodies.vit_weights import LEADING_TOKENS, POSITIONS
from stce_jax.models.factory import create_model
from stce_jax.paths import open_path
from stce_jax.training.assemble import load_run
from stce_jax.training.preprocessing import view_options
from stce_jax.workdir.layout import is_workdir
from stce_jax.workdir.parts import NotRegisteredError
from stce_jax.workdir.weights import flatten

NAMED = 5  # names of arrays in a message
TAKEN = "a workdir of stce train, a .safetensors or .npz file, or a folder of the Hugging Face hub"
OWN_NAMES = "this package's names"
DEFAULT_SIZE = 224  # pixels


@dataclasses.dataclass(frozen=True)
class Source:
    """Weights by their path in a model of this package, not yet fitted to one.

    Attributes:
      place: as the user gave it.
      kind: what it was recognised as, for people.
      arrays: {path: array}; those of other libraries are float32.
      labels: of the head; None: there is none, or it does not say of which classes it is.
      preprocessing: what is known of it.
      grid: (h, w) of a position embedding; None: not known.
      model: of a run.
      preset, options: for `create_model`; None: it does not say of which model it is.
      guessed: options that no shape tells, such as the number of heads, and that are the layout's guess.
      left_out: names of arrays that were not used.
      notes: what users should know, a phrase each.
    """

    place: str
    kind: str
    arrays: dict[str, np.ndarray]
    labels: Labels | None = None
    preprocessing: Preprocessing = dataclasses.field(default_factory=Preprocessing)
    grid: tuple[int, int] | None = None
    model: Body | None = None
    preset: str | None = None
    options: Mapping[str, Any] | None = None
    guessed: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        """Classes of the head; 0: there is none."""
        return classes_of(self.arrays)

    def build(self, image_size: int | tuple[int, int] | None = None, **options: Any) -> Body:
        """A model of this source, with other options where given.

        Raises:
          CheckpointError: the source does not say of which model it is, or none can have its options.
        """
        if self.preset is None or self.options is None:
            raise CheckpointError(f"{self.place} does not say of which model it is; give the model")
        size = image_size or self.preprocessing.image_size or DEFAULT_SIZE
        try:
            return create_model(self.preset, num_classes=self.classes, image_size=size, **{**self.options, **options})
        except ConfigError as error:
            if options or image_size:
                raise
            raise CheckpointError(f"{self.place} is of no model that can be: {error}") from error


def classes_of(arrays: Mapping[str, np.ndarray]) -> int:
    """Classes of the head among arrays; 0: there is none."""
    head = arrays.get("params/head/kernel")
    return head.shape[-1] if head is not None and head.ndim == 2 else 0


def listed(names: Sequence[str]) -> str:
    """Names in a message: the first few, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(shown, names[:NAMED])) + more


def open_source(source: epath.PathLike, known: Mapping[str, Any] | None = None) -> Source:
    """Reads weights and says what they are.

    Args:
      source: a workdir of `stce train` (its last checkpoint, no moving average); a .safetensors or .npz file; a folder
        of the Hugging Face hub, or of `stce export`.
      known: options of the model, by their names here, for what neither shapes nor a config.json beside them tell.

    Raises:
      ConfigError: there is nothing, or a run uses a module that is not registered.
      CheckpointError: it is damaged, of no known layout, or has what no body here has.
    """
    if not open_path(source).exists():
        raise ConfigError(f"there is no {source} to begin with; give {TAKEN}")
    path = epath.Path(source).expanduser()
    if not files.is_folder(path) and is_workdir(source):
        return _of_run(str(source), str(path))
    found = files.read(source)
    arrays = files.without_prefix(found.arrays)
    layout = layouts.recognise(arrays.keys())
    try:
        if layout is not None:
            return _of_layout(str(source), layout, arrays, found, known or {})
        if any(name.startswith(("params/", "batch_stats/")) for name in arrays):
            return _of_own(str(source), found)
    except StceError as error:
        raise CheckpointError(f"cannot begin with {source}: {error}") from error
    titles = ", ".join(one.TITLE for one in layouts.LAYOUTS.values())
    raise CheckpointError(
        f"{source} has names of no known layout ({listed(sorted(arrays)) or 'it is empty'}); known are {titles}, "
        f"{OWN_NAMES}: take one of those libraries' files of it, or rename its arrays as docs/weights.md says"
    )


def _of_run(source: str, path: str) -> Source:
    try:
        run = load_run(path, "last")
    except NotRegisteredError as error:  # nothing is wrong with the checkpoint
        raise ConfigError(f"cannot begin with {source}: {error}") from error
    except StceError as error:
        raise CheckpointError(f"cannot begin with {source}: {error}") from error
    view = view_options(run.config)
    return Source(
        place=source,
        kind="a run",
        arrays=flatten(run.variables),
        labels=Labels(run.class_ids, run.class_names),
        preprocessing=Preprocessing(run.model.image_size, run.mean, run.std, view["interpolation"], view["fraction"]),
        grid=run.model.grid(*run.model.image_size),
        model=run.model,
    )


def _of_own(source: str, found: files.Found) -> Source:
    """A file in this package's names, or an export with its description."""
    ids, description = found.class_ids, found.description
    own = Source(source, OWN_NAMES, found.arrays, Labels(ids, ids) if ids is not None else None)
    if not description:
        return own
    image, names = description.get("image"), description.get("class_names")
    options = description.get("model")
    if not isinstance(image, dict) or not isinstance(options, dict) or not isinstance(options.get("name"), str):
        raise CheckpointError(f"{files.DESCRIPTION} describes no model; export it again")
    if ids is not None and isinstance(names, list) and [type(name) for name in names] == [str] * len(ids):
        own = dataclasses.replace(own, labels=Labels(ids, tuple(names)))
    return dataclasses.replace(
        own,
        kind="an export of stce",
        preprocessing=seeing.of_description(image),
        preset=options["name"],
        options={key: value for key, value in options.items() if key != "name"},
    )


def _of_layout(
    source: str, layout: str, arrays: Mapping[str, np.ndarray], found: files.Found, known: Mapping[str, Any]
) -> Source:
    """Another library's weights, brought to our paths."""
    module: Any = layouts.LAYOUTS[layout]
    arrays = getattr(module, "normal", dict)(arrays)
    options = layouts.options_of(layout, arrays, {**known, **found.config})
    ours, left_out = layouts.to_ours(layout, arrays, options)
    ours = {path: _as_float32(path, array) for path, array in ours.items()}
    of_timm = "pretrained_cfg" in found.config or "architecture" in found.config
    preprocessing = seeing.of_timm(found.config) if of_timm else seeing.of_hugging_face(found.config, found.processor)
    if preprocessing.mean is None and hasattr(module, "NORMALIZATION"):
        mean, std = module.NORMALIZATION
        preprocessing = dataclasses.replace(preprocessing, mean=mean, std=std)
    grid, size = _grid_and_size(ours, options, preprocessing.image_size)
    classes = classes_of(ours)
    own = (labels.of_timm if of_timm else labels.of_hugging_face)(found.config, classes) if classes else None
    guessed = [] if found.config else [name for name in getattr(module, "GUESSED", ()) if name not in known]
    return Source(
        place=source,
        kind=module.TITLE,
        arrays=ours,
        labels=own,
        preprocessing=dataclasses.replace(preprocessing, image_size=size),
        grid=grid,
        preset=module.PRESET,
        options=options,
        guessed=tuple(guessed),
        left_out=tuple(left_out),
        notes=tuple(filter(None, [preprocessing.note])),
    )


def _as_float32(path: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind != "f":
        raise CheckpointError(f"{path} is of type {array.dtype}, not of a float")
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(found).all():
        raise CheckpointError(f"{path} holds NaN or infinity in float32; take a file from before it diverged")
    return found


def _grid_and_size(
    arrays: Mapping[str, np.ndarray], options: Mapping[str, Any], size: tuple[int, int] | None
) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """(grid of the position embedding, image size), where there is one: what config.json says must fit to it."""
    positions, patch = arrays.get(POSITIONS), options.get("patch_size")
    if positions is None or positions.ndim != 3 or not isinstance(patch, int):
        return None, size
    count = positions.shape[1] - sum(token in arrays for token in LEADING_TOKENS)
    if size is not None:
        grid = (size[0] // patch, size[1] // patch)
        if math.prod(grid) != count:
            raise CheckpointError(
                f"its config.json says images of {size[0]}x{size[1]} pixels, {math.prod(grid)} patches of {patch}; its "
                f"position embedding is of {count}"
            )
        return grid, size
    side = math.isqrt(max(0, count))
    return ((side, side), (side * patch, side * patch)) if side and side * side == count else (None, None)
