"""A trained model as a program with its weights inside: written, read back and compared, and loaded for use.

Shape letters: B batch, S image side.
"""

import dataclasses
import functools
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, UInt8

from stce_jax.convert.initial import read_weights
from stce_jax.data import decode
from stce_jax.errors import CheckpointError, ConfigError, shown
from stce_jax.paths import first_line, open_path, parse_json, read_bytes, write_bytes, write_text
from stce_jax.recipe import augment
from stce_jax.training.assemble import Run
from stce_jax.training.preprocessing import view_options
from stce_jax.workdir import parts
from stce_jax.workdir.digests import find_damage, write_digests
from stce_jax.workdir.weights import flatten, save_weights, unflatten

PROGRAM, DESCRIPTION, WEIGHTS = "model.jaxexport", "model.json", "weights.safetensors"
COMPARED = (1, 3)  # batch sizes at which the exported model must agree with the live one
# How far logits may differ, as a share of the greatest. GPUs multiply float32 in TF32, whose step is 2^-10.
ROUNDING = {"float32": 2**-10, "bfloat16": 2**-5}
ROUNDING_ON_CPU = 2**-14  # of float32


@dataclasses.dataclass(frozen=True)
class ExportedModel:
    """What `stce export` wrote, ready for use.

    Attributes:
      logits: pixels, red green blue -> logits; compiled once for each B.
      preprocess: path, encoded bytes, or uint8 array [H, W, 3] -> such pixels of one image.
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
        view = functools.partial(decode.read_view, **_view_of(image))
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
    """The options of `decode.read_view` that a description's "image" says; ValueError for an unknown interpolation."""
    interpolation = image.get("interpolation", decode.INTERPOLATIONS[0])  # earlier exports say none
    if interpolation not in decode.INTERPOLATIONS:
        raise ValueError(f"there is no interpolation {shown(interpolation)}")
    return {"size": image["size"], "fraction": image["crop_fraction"], "interpolation": interpolation}


def write_exported(directory: Path, run: Run, *, ema: bool, platforms: Sequence[str], batch: int | None) -> dict:
    """Writes a run's files into a local directory, reads them back and compares: see `stce_jax.verbs.export.export`.

    Args:
      directory: where the files are written.
      run: of `load_run`.
      ema: whether the run's variables are the moving average, for the description.
      platforms: where the program shall run, of those that `jax.export` knows.
      batch: images in every call; None: any number.

    Returns:
      {"step", "dtype", "platforms", "bytes", "batch_sizes", "difference", "greatest_logit"}.

    Raises:
      OSError: a file cannot be written.
      CheckpointError: what was read back differs from the run.
    """
    variables = unflatten(flatten(run.variables))  # on the host, wherever the run's were
    program = _program(run, variables, platforms, batch)
    description = _describe(run, program, ema)
    write_bytes(directory / PROGRAM, program.serialize())
    write_text(directory / DESCRIPTION, json.dumps(description, indent=2, ensure_ascii=False) + "\n")
    save_weights(directory / WEIGHTS, variables, run.class_ids)
    write_digests(open_path(directory))
    _compare_weights(directory / WEIGHTS, run, variables)
    batch_sizes = COMPARED if batch is None else (batch,)
    difference, greatest = _compare_logits(directory, run, variables, batch_sizes)
    return {
        "step": run.step,
        "dtype": description["model"]["dtype"],
        "platforms": list(program.platforms),
        "bytes": (directory / PROGRAM).stat().st_size,
        "batch_sizes": list(batch_sizes),
        "difference": difference,
        "greatest_logit": greatest,
    }


def _program(
    run: Run, variables: Mapping[str, Any], platforms: Sequence[str], batch: int | None
) -> jax.export.Exported:
    """The program of pixels -> logits, weights inside."""

    def logits(pixels: UInt8[Array, "B S S 3"]) -> Float[Array, "B classes"]:
        return run.model.apply(variables, augment.normalize(pixels, mean=run.mean, std=run.std), train=False)

    (images,) = jax.export.symbolic_shape("batch") if batch is None else (batch,)
    pixels = jax.ShapeDtypeStruct((images, run.config.image_size, run.config.image_size, 3), jnp.uint8)
    return jax.export.export(jax.jit(logits), platforms=list(platforms))(pixels)


def _describe(run: Run, program: jax.export.Exported, ema: bool) -> dict[str, Any]:
    """What model.json says."""
    config, view = run.config, view_options(run.config)
    size, fraction, interpolation = (view[name] for name in ("size", "fraction", "interpolation"))
    pixels: Any
    logits: Any
    (pixels,), (logits,) = program.in_avals, program.out_avals
    packages = ("stce_jax", "jax", "jaxlib", "flax")
    return {
        "model": parts.all_options(config.model),
        "input": {
            "shape": _lengths(pixels),
            "dtype": pixels.dtype.name,
            "meaning": "pixels 0..255, [batch, row, column, (red, green, blue)]; normalised inside the program",
        },
        "output": {
            "shape": _lengths(logits),
            "dtype": logits.dtype.name,
            "meaning": "logits, [batch, class]; their softmax are the classes' probabilities",
        },
        "image": {
            "size": size,
            "crop_fraction": fraction,
            "resize_short_side": int(size / fraction),
            "interpolation": interpolation,
            "preprocess": "decode to 8-bit RGB, ignoring EXIF orientation; resize the short side to resize_short_side, "
            f"the long side in proportion, rounded down (Pillow's {interpolation.upper()}); "
            "cut out the central size x size pixels",
            "mean": list(run.mean),
            "std": list(run.std),
            "normalisation": "(pixels / 255 - mean) / std for each channel; inside the program, not to be done again",
        },
        "class_ids": list(run.class_ids),
        "class_names": list(run.class_names),
        "step": run.step,
        "epoch": run.epoch,
        "moving_average": ema,
        "platforms": list(program.platforms),
        "calling_convention": program.calling_convention_version,
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def _lengths(array: Any) -> list[int | str]:
    """A shape for JSON; what is symbolic as its name."""
    return [length if isinstance(length, int) else str(length) for length in array.shape]


def _compare_weights(path: Path, run: Run, variables: Mapping[str, Any]) -> None:
    written, _ = read_weights(str(path), variables, run.model, run.class_ids)
    for name, array in flatten(variables).items():
        if (written[name].dtype, written[name].tobytes()) != (array.dtype, array.tobytes()):
            raise CheckpointError(f"{path.name} was read back with another {name}; the disk or the memory is faulty")


def _compare_logits(
    directory: Path, run: Run, variables: Mapping[str, Any], batch_sizes: Sequence[int]
) -> tuple[float, float]:
    """(greatest difference of a logit, greatest logit) of what was written and the live model."""
    exported, live = load_exported(directory), jax.jit(functools.partial(run.model.apply, train=False))
    rng, size = np.random.default_rng(0), run.config.image_size
    difference = greatest = 0.0
    for count in batch_sizes:
        pixels = rng.integers(0, 256, (count, size, size, 3), np.uint8)
        expected = np.asarray(live(variables, augment.normalize(pixels, mean=run.mean, std=run.std)))
        # A NaN on either side stays one, and no NaN is below a bound.
        difference = np.maximum(difference, np.abs(np.asarray(exported.logits(pixels)) - expected).max())
        greatest = np.maximum(greatest, np.abs(expected).max())
    dtype = exported.description["model"]["dtype"]
    share = ROUNDING_ON_CPU if (dtype, jax.default_backend()) == ("float32", "cpu") else ROUNDING[dtype]
    allowed = share * greatest
    if not difference <= allowed:
        raise CheckpointError(
            f"the exported model differs from the run: logits by up to {difference:.1e} of {greatest:.1f}, "
            f"rounding explains {allowed:.1e}; nothing was exported"
        )
    return float(difference), float(greatest)
