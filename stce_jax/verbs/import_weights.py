"""`stce import`: weights of another library as a run of step 0, which every other verb opens."""

import ast
import contextlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from stce_jax.convert import labels
from stce_jax.convert.initial import fit_all
from stce_jax.convert.preprocessing import numbers
from stce_jax.convert.sources import DEFAULT_SIZE, Source, open_source
from stce_jax.data import class_lists
from stce_jax.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from stce_jax.errors import CheckpointError, ConfigError
from stce_jax.paths import first_line
from stce_jax.training import assemble as runs
from stce_jax.training.mesh import make_mesh, replicated
from stce_jax.training.state import TrainState, abstract_variables
from stce_jax.verbs.appearing import appearing
from stce_jax.workdir import config as configuration
from stce_jax.workdir import layout, migration, parts
from stce_jax.workdir.checkpoint_writer import CheckpointWriter
from stce_jax.workdir.meta import IMPORTED
from stce_jax.workdir.weights import unflatten


def import_weights(source: epath.PathLike, workdir: epath.PathLike, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Makes a run of step 0 of weights whose model the source tells; nothing is left of it if that fails.

    Its config has the source's model, image size, mean, std, interpolation and crop, where they are known; all else is
    that of `configs/default.py`. It can be evaluated, predicted with, exported and so on; to train on, begin another
    run with it (`stce train --init_from`).

    Args:
      source: what `load_weights` takes, but no run.
      workdir: the local directory to make; one that is there must be empty.
      overrides: such as "--config.image_size=384", applied last.

    Returns:
      {"said" (what was recognised, adapted and left out, in one line), "model" (the preset), "parameters",
      "image_size", "classes", "preprocessing" (in words), "unknown" (what of it is not known and was assumed)}.

    Raises:
      ConfigError: there is no such source, the workdir is not empty, or an override is wrong.
      CheckpointError: the source is damaged, of no known layout, without a head, or does not fit.

    Example:
      >>> import_weights("downloads/deit_small_patch16_224", "runs/deit_s")["said"]
    """
    opened = open_source(source, _given_options(overrides))
    if opened.model is not None:
        raise ConfigError(f"{source} is a run already; use it as it is, or begin another with it: --init_from={source}")
    if opened.preset is None:
        raise CheckpointError(
            f"{source} does not say of which model it is; begin a run of that model with it: --init_from={source}"
        )
    if not opened.classes:
        raise CheckpointError(f"{source} has no head; begin a run with it, which gets one: --init_from={source}")
    config = _config_of(opened, overrides)
    model = runs.build_model(config, opened.classes)
    expected = abstract_variables(model, config.image_size)
    given = [migration.flag_key(word).rpartition(".")[2] for word in overrides]
    arrays, said = fit_all(opened, model, expected, given)
    classes = opened.labels or labels.unnamed(opened.classes)
    meta = {
        "config": configuration.to_dict(config),
        "class_ids": list(classes.ids),
        "class_names": list(classes.names),
        "fingerprint": IMPORTED,
        "mean": list(config.augment.mean or IMAGENET_MEAN),
        "std": list(config.augment.std or IMAGENET_STD),
        "epoch": 0.0,
        "salt": 0,
        "guard": {"losses": [], "skipped": 0, "skipped_in_all": 0},
    }
    with appearing(workdir, "import", "--workdir") as directory:
        layout.write_config(directory, config)
        with CheckpointWriter(layout.checkpoints_in(directory), keep=1) as checkpoints:
            checkpoints.save(_state(arrays), meta)
    return {
        "said": said,
        "model": config.model.name,
        "parameters": sum(array.size for path, array in arrays.items() if path.startswith("params/")),
        "image_size": config.image_size,
        "classes": opened.classes,
        "preprocessing": opened.preprocessing.summary(),
        "unknown": _unknown(opened, config),
    }


def _given_options(overrides: Sequence[str]) -> dict[str, Any]:
    """{name: value} of the model's options among overrides, as far as they are plain numbers, text and tuples."""
    given: dict[str, Any] = {}
    for word in overrides:
        key, (_, _, text) = migration.flag_key(word), word.partition("=")
        if not key.startswith("model."):
            continue
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            given[key.rpartition(".")[2]] = ast.literal_eval(text)
    return given


def _config_of(opened: Source, overrides: Sequence[str]) -> Any:
    """The config of a run of these weights, with the overrides."""
    config, seen = configuration.load_config("default"), opened.preprocessing
    options = dict(opened.options or {})
    with config.unlocked():
        config.init_from = opened.place
        ids = opened.labels.ids if opened.labels is not None else ()
        config.dataset = "imagenet2012" if ids == class_lists.load_class_ids("all") else "folder"
        config.image_size = seen.image_size[0] if seen.image_size else DEFAULT_SIZE
        known: dict[str, Any] = {"mean": seen.mean, "std": seen.std, "eval_interpolation": seen.interpolation}
        known["eval_crop_fraction"] = seen.crop_fraction
        for key, value in known.items():
            if value is not None:
                config.augment[key] = value
        try:
            _set_model(config.model, opened.preset, options)
        except Exception as error:  # of an export's description, which may be anybody's
            raise CheckpointError(f"{opened.place} is of no model that can be: {first_line(error)}") from error
    config = configuration.override(config, overrides)
    keys = {migration.flag_key(word) for word in overrides}
    if seen.image_size and seen.image_size[0] != seen.image_size[1] and "image_size" not in keys:
        raise CheckpointError(
            f"{opened.place} is for images of {seen.image_size[0]}x{seen.image_size[1]} pixels, those of a run are "
            f"squares; give one: --config.image_size={max(seen.image_size)}"
        )
    runs.check_options(config)
    parts.check_read(overrides, config)
    return config


def _set_model(model: Any, preset: str | None, options: dict[str, Any]) -> None:
    """Sets the preset and the options in the sections of the modules that they belong to."""
    model.name = preset
    model.dtype = options.pop("dtype", None)
    for part in parts.TABLES:
        model[part].name = options.pop(part, None)
    for key, value in options.items():
        *sections, name = parts.place(key, model).split(".")
        section = model
        for word in sections:
            section = section[word]
        if section.get_type(name) is tuple and isinstance(value, int | float):  # of one, as on the command line
            value = (value,)
        section[name] = tuple(value) if isinstance(value, list) else value


def _state(arrays: dict[str, np.ndarray]) -> TrainState:
    variables = unflatten({path: jnp.asarray(array, jnp.float32) for path, array in arrays.items()})
    return jax.device_put(TrainState(jnp.int32(0), variables, None, None), replicated(make_mesh()))


def _unknown(opened: Source, config: Any) -> list[str]:
    """What of the preprocessing nothing tells, each with what was assumed."""
    seen, view = opened.preprocessing, config.augment
    statistics = [("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)]
    assumed = [f"{name} {numbers(value)}" for name, value in statistics if view[name] is None]
    if seen.interpolation is None and view.eval_interpolation is None:
        assumed.append("bicubic")
    if seen.crop_fraction is None:
        assumed.append(f"crop {view.eval_crop_fraction:g}")
    if seen.image_size is None:
        assumed.append(f"image size {config.image_size}")
    return assumed
