"""Models as a user names them: by name or pattern, by a run, or by a config, with options."""

import ast
import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any

from stce_jax.errors import ConfigError
from stce_jax.models.bodies import Body
from stce_jax.models.factory import create_model, list_models
from stce_jax.paths import first_line
from stce_jax.training import assemble as runs
from stce_jax.training.state import abstract_variables
from stce_jax.workdir import layout, parts
from stce_jax.workdir.checkpoints import Checkpoints

IMAGE_SIZE, NUM_CLASSES, BATCH_SIZES = 224, 100, (1, 8, 32)  # of models by name


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """A model that can be built.

    Attributes:
      label: what the user called it.
      build: (dtype=name, or nothing for its own) -> a body.
      shapes: its variables as ShapeDtypeStructs.
      image_size: side in pixels.
      num_classes: of the head.
      batch_sizes: that it is run with by default.
    """

    label: str
    build: Callable[..., Body]
    shapes: Any
    image_size: int
    num_classes: int
    batch_sizes: tuple[int, ...]


def read_specs(
    words: str | Iterable[str], *, image_size: int | None = None, num_classes: int | None = None
) -> list[ModelSpec]:
    """The models that words name; a pattern may name several.

    Args:
      words: NAME[,KEY=VALUE...] each. NAME is a model or a shell pattern of models, a workdir of a run, or a config;
        KEY one of its options, see `create_model`; VALUE a Python literal, or else a string.
      image_size: side in pixels; None: 224, for workdirs and configs their own.
      num_classes: of the head; None: 100, for runs with a checkpoint their own.

    Raises:
      ConfigError: there is no such model, or it cannot be built with these options.
      CheckpointError: a run's last checkpoint does not say its classes.
    """
    words = [words] if isinstance(words, str) else words
    return [spec for word in words for spec in _read(word, image_size, num_classes)]


def _read(word: str, image_size: int | None, num_classes: int | None) -> list[ModelSpec]:
    name, *settings = re.split(r",(?=\w+=)", word)  # not at the comma of stem_widths=16,32
    options = dict(map(_read_option, settings))
    if not (names := list_models(name)):
        return [_of_config(word, name, options, image_size, num_classes)]
    size, classes = image_size or IMAGE_SIZE, num_classes or NUM_CLASSES

    def builder(each: str) -> Callable[..., Body]:
        return lambda **dtype: create_model(each, num_classes=classes, image_size=size, **options | dtype)

    return [_spec(",".join([each, *settings]), builder(each), size, classes, BATCH_SIZES) for each in names]


def _read_option(setting: str) -> tuple[str, Any]:
    key, _, value = setting.partition("=")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def _of_config(
    word: str, name: str, options: dict[str, Any], image_size: int | None, num_classes: int | None
) -> ModelSpec:
    config, own_classes = _open(name)
    config = config.copy_and_resolve_references()
    classes = num_classes or own_classes or NUM_CLASSES
    with config.unlocked():
        config.image_size = image_size or config.image_size

    def build(**dtype: str) -> Body:
        changed = config.copy_and_resolve_references()
        with changed.unlocked():
            for key, value in (options | dtype).items():
                changed.update_from_flattened_dict({f"model.{parts.place(key, changed.model)}": value})
        return runs.build_model(changed, classes)

    return _spec(word, build, config.image_size, classes, (config.batch_size,))


def _open(name: str) -> tuple[Any, int | None]:
    """(config, number of classes or None) of a workdir, or of a config."""
    if layout.is_workdir(name):
        config, checkpoints = layout.read_config(name), Checkpoints(layout.checkpoints_in(name))
        steps = checkpoints.steps()
        return config, len(checkpoints.restore_meta(steps[-1], "class_ids")["class_ids"]) if steps else None
    try:
        return runs.load_config(name), None
    except ConfigError as error:
        if "there is no config" not in str(error):
            raise
        raise ConfigError(
            f"there is no model, workdir of a run, or config {name!r}; `stce models` lists the models"
        ) from error


def _spec(
    label: str, build: Callable[..., Body], image_size: int, num_classes: int, batch_sizes: tuple[int, ...]
) -> ModelSpec:
    try:
        shapes = abstract_variables(build(), image_size)
    except ConfigError:
        raise
    except Exception as error:  # whatever options of another type lead to
        raise ConfigError(f"{label} cannot be built: {first_line(error)}") from error
    return ModelSpec(label, build, shapes, image_size, num_classes, batch_sizes)
