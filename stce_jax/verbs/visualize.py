"""`stce visualize`: the super tokens of images, what the class token attends to, what became of reduced tokens."""

import functools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from stce_jax.analysis.drawing import pictures, reductions, sheets
from stce_jax.analysis.drawing.introspection import (
    attention_grid,
    check_class_attention,
    check_super_tokens,
    class_attention_by_head,
    iterated_affinities,
)
from stce_jax.analysis.pages import looking
from stce_jax.data import catalog, crops, resizing
from stce_jax.data.files import list_images, read_image
from stce_jax.errors import CheckpointError, ConfigError, DataError, check_whole
from stce_jax.models.bodies import Body
from stce_jax.models.factory import LARGEST_SIDE, create_model
from stce_jax.paths import absolute, is_remote, named_failures, open_path, write_bytes
from stce_jax.recipe import augment
from stce_jax.training import assemble as runs
from stce_jax.training.preprocessing import view_options

IMAGE_SIZE, CROP_FRACTION = 224, 0.875  # of models by name, as in configs/default.py
SMALLEST_TILE = 160  # pixels; the captions need room

Draw = Callable[[UInt8[np.ndarray, "S S 3"], UInt8[np.ndarray, "Y Y 3"]], dict[str, Image.Image]]
Look = Callable[[UInt8[np.ndarray, "S S 3"]], looking.Looked]


class Subject(NamedTuple):
    """A model to look into, and how it sees images: their side in pixels, the part of their short side, statistics.

    For `interpolation` see `crops.center_crop`.
    """

    model: Body
    variables: Any
    size: int
    fraction: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = resizing.INTERPOLATIONS[0]


def visualize(
    paths: epath.PathLike | Iterable[epath.PathLike],
    subject: Subject,
    output: str,
    *,
    attention: bool = False,
    token: tuple[int, int] | None = None,
    reduced: bool = False,
    tile: int = 448,
    unreadable: Callable[[DataError], None] | None = None,
    report: Callable[[str], None] | None = None,
) -> list[str]:
    """Draws what a model makes of images, as PNG files: by default the super tokens, and what became of reduced ones.

    Args:
      paths: image files and folders of them, see `list_images`.
      subject: of `open_run` or `random_model`.
      output: directory of the pictures, which is made.
      attention: draw the class token's attention in each block, see `sheets.attention_sheet`.
      token: (row, column) in the grid: draw the affinities to that super token, see `sheets.token_sheet`.
      reduced: draw what the token reduction keeps, merges or drops, see `reductions.reduction_sheet`.
      tile: side in pixels of an image on the pictures; it is cut from the file at this resolution, not the model's.
      unreadable: called with the error of each image that cannot be read, which is then left out; None: the first is
        raised.
      report: called with the path of each picture once it is written.

    Returns:
      The paths of the pictures: NAME_super_tokens.png, NAME_attention.png, NAME_token_ROW_COLUMN.png,
      NAME_reduction.png. NAME is the image's, with a number behind it where several have the same name.

    Raises:
      ConfigError: the model has no super tokens, class token, attention or reduction, or no such token; or a picture
        cannot be written.
      DataError: an image is not there or cannot be read.
      CheckpointError: the model gives no finite numbers.
    """
    kinds = _checked_kinds(subject, attention, token, reduced, tile)
    files = named(list_images(paths))
    draw = _drawer(subject, kinds, token)
    written = []
    for name, _, seen, shown in views(files, subject, tile, unreadable):
        for kind, picture in draw(seen, shown).items():
            written.append(_write(output, f"{name}_{kind}.png", picture))
            if report:
                report(written[-1])
    return written


def open_run(
    workdir: epath.PathLike, checkpoint: str | int = "last", ema: bool = False, image_size: int | None = None
) -> Subject:
    """The model of a run, see `load_run`; it sees images at its own size, or at sides of `image_size` pixels."""
    run = runs.load_run(workdir, checkpoint, ema)
    view = view_options(run.config)
    if image_size is not None:
        view["size"] = image_size
    return Subject(run.model, run.variables, mean=run.mean, std=run.std, **view)


def random_model(name: str, image_size: int = IMAGE_SIZE, seed: int = 0) -> Subject:
    """A model of `list_models` with random weights."""
    check_whole("seed", seed, 0, 2**32 - 1)
    model = create_model(name, num_classes=0, image_size=image_size)
    pixels = np.zeros((1, image_size, image_size, 3), np.float32)
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(seed), pixels)
    return Subject(model, variables, image_size, CROP_FRACTION, catalog.IMAGENET_MEAN, catalog.IMAGENET_STD)


def _checked_kinds(
    subject: Subject, attention: bool, token: tuple[int, int] | None, reduced: bool, tile: int
) -> Collection[str]:
    """What is to be drawn; refuses what cannot be before anything is read or compiled."""
    check_sizes(subject, tile)
    model, size = subject.model, subject.size
    asked = {"attention": attention, "token": bool(token), "reduction": reduced}
    kinds = [kind for kind, wanted in asked.items() if wanted]
    if attention:
        check_class_attention(model, size)
    if token:
        check_super_tokens(model, size, affinities=True)
        rows, columns = model.embedding.grid(size, size)
        if not (0 <= token[0] < rows and 0 <= token[1] < columns):
            last = f"{rows - 1},{columns - 1}"
            raise ConfigError(f"there is no token {token[0]},{token[1]}; the last of the grid is {last}")
    if reduced:
        reductions.stage_names(model, size)
    return kinds or _kinds_of(model, size)


def check_sizes(subject: Subject, tile: int) -> None:
    check_whole("tile", tile, SMALLEST_TILE, LARGEST_SIDE)
    check_whole("image_size", subject.size, 1, LARGEST_SIDE)
    subject.model.grid(subject.size, subject.size)  # refuses sizes that cannot be cut


def _kinds_of(model: Body, size: int) -> list[str]:
    """What is drawn of a model where nothing is asked for."""
    kinds = ["reduction"] if getattr(model, "reduction", None) and reductions.is_drawable(model, size) else []
    try:
        check_super_tokens(model, size, affinities=False)
    except ConfigError:
        if not kinds:
            raise
        return kinds
    return ["super_tokens", *kinds]


def views(
    files: Mapping[str, str], subject: Subject, tile: int, unreadable: Callable[[DataError], None] | None
) -> Iterator[tuple[str, str, UInt8[np.ndarray, "S S 3"], UInt8[np.ndarray, "Y Y 3"]]]:
    """Yields (name, path, image as the model sees it, as it is shown)."""
    how: dict[str, Any] = {"fraction": subject.fraction, "interpolation": subject.interpolation}
    for name, file in files.items():
        try:
            image = read_image(file)
        except DataError as error:
            if unreadable is None:
                raise
            unreadable(error)
            continue
        seen, shown = (crops.center_crop(image, side, **how) for side in (subject.size, tile))
        yield name, file, seen, shown


def looker(subject: Subject, kinds: Collection[str]) -> Look:
    """A function that computes what there is to see of one image, as the model sees it."""
    model = subject.model
    find_attention = jax.jit(functools.partial(class_attention_by_head, model))
    find_affinities = jax.jit(functools.partial(iterated_affinities, model))
    find_assignments = jax.jit(functools.partial(reductions.assignments, model))

    def look(seen: UInt8[np.ndarray, "S S 3"]) -> looking.Looked:
        pixels = augment.normalize(seen, mean=subject.mean, std=subject.std)[None]  # [1, S, S, 3]
        affinities = attention = stages = None
        if "attention" in kinds:
            attention = [np.asarray(weights)[0] for weights in find_attention(subject.variables, pixels)]
            _check_finite(*attention)
        if "token" in kinds or "super_tokens" in kinds:
            affinities = [np.asarray(affinity)[0] for affinity in find_affinities(subject.variables, pixels)]
            _check_finite(*affinities)
        if "reduction" in kinds:
            assigned, values = jax.device_get(find_assignments(subject.variables, pixels))
            _check_finite(values)
            stages = [stage[0] for stage in assigned]
        return looking.Looked(affinities, attention, stages)

    return look


def _drawer(subject: Subject, kinds: Collection[str], token: tuple[int, int] | None) -> Draw:
    """A function that draws one image: (as the model sees it, as it is shown) -> pictures by kind."""
    model, embedding, size = subject.model, subject.model.embedding, subject.size
    names = reductions.stage_names(model, size) if "reduction" in kinds else []
    look, apart = looker(subject, kinds), attention_grid(model, size)[1]

    def draw(seen: UInt8[np.ndarray, "S S 3"], shown: UInt8[np.ndarray, "Y Y 3"]) -> dict[str, Image.Image]:
        affinities, attention, stages = look(seen)
        drawn = {}
        if attention is not None:
            weights = np.stack([heads.mean(axis=0) for heads in attention])  # [depth, rows, columns]
            drawn["attention"] = sheets.attention_sheet(shown, weights, embedding, size, apart)
        if token and affinities is not None:
            drawn[f"token_{token[0]}_{token[1]}"] = sheets.token_sheet(shown, affinities, embedding, size, token)
        if "super_tokens" in kinds and affinities is not None:
            drawn["super_tokens"] = sheets.super_token_sheet(shown, seen, affinities, embedding)
        if stages is not None:
            drawn["reduction"] = reductions.reduction_sheet(shown, stages, names, embedding, size)
        return drawn

    return draw


def _check_finite(*arrays: np.ndarray) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise CheckpointError("the model gives no finite numbers; take another --checkpoint")


def named(files: Iterable[str]) -> dict[str, str]:
    """{name: path}: each file once, and no name twice, not even where "A" and "a" are one."""
    names: dict[str, str] = {}
    seen: set[Path] = set()
    taken: set[str] = set()
    for file in files:
        if (place := absolute(file)) in seen:
            continue
        seen.add(place)
        name, number = Path(file).stem, 1
        while name.casefold() in taken:
            number += 1
            name = f"{Path(file).stem}-{number}"
        taken.add(name.casefold())
        names[name] = file
    return names


def _write(folder: str, name: str, picture: Image.Image) -> str:
    path = os.path.join(folder, name)
    with named_failures(f"write {path}", "give another --output"):
        if not is_remote(folder):
            os.makedirs(absolute(folder), exist_ok=True)
        write_bytes(open_path(path), pictures.png(picture))
    return path
