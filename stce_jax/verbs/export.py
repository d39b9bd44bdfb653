"""`stce export`: a run as files that are used without it, for any number of images, on CPUs, GPUs and TPUs.

Shape letters: B batch, S image side.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from stce_jax.data import decode
from stce_jax.errors import CheckpointError, ConfigError
from stce_jax.paths import absolute, first_line, is_remote, open_path, write_bytes, write_text
from stce_jax.recipe import augment
from stce_jax.training import assemble as runs
from stce_jax.workdir import parts, weights
from stce_jax.workdir.digests import find_damage, write_digests

PROGRAM, DESCRIPTION, WEIGHTS = "model.jaxexport", "model.json", "weights.safetensors"
PLATFORMS = ("cpu", "cuda", "tpu")
COMPARED = (1, 3)  # batch sizes at which the exported model must agree with the live one
# How far logits may differ, as a share of the greatest. GPUs multiply float32 in TF32, whose step is 2^-10.
ROUNDING = {"float32": 2**-10, "bfloat16": 2**-5}
ROUNDING_ON_CPU = 2**-14  # of float32


def export(workdir, output, *, checkpoint="last", ema=False, platforms=PLATFORMS, batch=None):
    """Writes a run as a directory for deployment, and makes sure that it agrees with the run.

    The directory holds
      model.jaxexport: the model with its weights and the normalisation inside, as `jax.export` serialises it:
        uint8 pixels [B, S, S, 3], red green blue, 0..255 -> float32 logits [B, classes], in evaluation mode. JAX alone
        calls it: `jax.export.deserialize(open(path, "rb").read()).call(pixels)`. Nothing is unpickled.
      model.json: what these pixels and logits are, the classes, and how an image file becomes pixels.
      weights.safetensors: the weights alone, for `stce train --init_from` and other programs.
      SHA256SUMS: digests of the three, for `load_exported` and `sha256sum -c`.

    The files are read back and compared: weights to the bit, logits at batches of 1 and 3 up to rounding, on this
    machine's platform. The directory appears when all is well; else nothing is left.

    Args:
      workdir, checkpoint, ema: see `load_run`.
      output: the local directory to make; one that is there must be empty.
      platforms: where the program shall run, of "cpu", "cuda", "rocm" and "tpu"; this machine's must be among them.
      batch: images in every call, >= 1; None: any number.

    Returns:
      {"step", "dtype", "platforms", "bytes" (of the program), "batch_sizes" (compared), "difference" (the greatest
      of a logit), "greatest_logit"}.

    Raises:
      ConfigError: the output is not empty or cannot be written, a platform or batch cannot be.
      CheckpointError: the run cannot be read, or what was read back differs from it.

    Example:
      >>> export("runs/digits", "exports/digits")["difference"]
      >>> model = load_exported("exports/digits")
      >>> model.class_names[model.logits(model.preprocess("seven.png")[None]).argmax()]
    """
    here = jax.export.default_export_platform()
    for platform in platforms:
        if platform not in (*PLATFORMS, "rocm"):
            raise ConfigError(f"there is no platform {platform!r}; give some of {', '.join(PLATFORMS)}, rocm")
    if here not in platforms:
        raise ConfigError(f"the exported model is compared here, on {here}: put {here} among the platforms, too")
    if batch is not None and batch < 1:
        raise ConfigError(f"batch is {batch}; it must be at least 1, or symbolic for any")
    with _appearing(output) as directory:
        run = runs.load_run(workdir, checkpoint, ema)
        variables = weights.unflatten(weights.flatten(run.variables))  # on the host, wherever the run's were
        program = _program(run, variables, platforms, batch)
        description = _describe(run, program, ema)
        write_bytes(directory / PROGRAM, program.serialize())
        write_text(directory / DESCRIPTION, json.dumps(description, indent=2, ensure_ascii=False) + "\n")
        weights.save_weights(directory / WEIGHTS, variables, run.class_ids)
        write_digests(open_path(directory))
        _compare_weights(directory / WEIGHTS, run, variables)
        batch_sizes = COMPARED if batch is None else (batch,)
        difference, greatest = _compare_logits(directory, run, variables, batch_sizes)
        size = (directory / PROGRAM).stat().st_size
    return {
        "step": run.step,
        "dtype": description["model"]["dtype"],
        "platforms": list(program.platforms),
        "bytes": size,
        "batch_sizes": list(batch_sizes),
        "difference": difference,
        "greatest_logit": greatest,
    }


@dataclasses.dataclass(frozen=True)
class ExportedModel:
    """What `stce export` wrote, ready for use.

    Attributes:
      logits: uint8 pixels [B, S, S, 3], red green blue -> float32 [B, classes]; compiled once for each B.
      preprocess: path, encoded bytes, or uint8 array [H, W, 3] -> such pixels of one image, [S, S, 3].
      class_ids: the classes in the order of the logits: names of folders, WordNet ids.
      class_names: the same for people.
      description: all that model.json says.
    """

    logits: Callable
    preprocess: Callable
    class_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    description: dict[str, Any]


def load_exported(directory):
    """Loads what `stce export` wrote; no run is needed.

    Args:
      directory: that holds it, local or remote.

    Returns:
      An `ExportedModel`.

    Raises:
      ConfigError: there is none.
      CheckpointError: a file is missing, damaged or changed, or this JAX does not read it.
    """
    path = open_path(directory)
    if not (path / DESCRIPTION).exists() and not (path / PROGRAM).exists():
        raise ConfigError(f"{directory} is no exported model; `stce export --output` makes one")
    try:
        damage = find_damage(path)
        content = {} if damage else {name: (path / name).read_bytes() for name in (PROGRAM, DESCRIPTION)}
    except OSError as error:
        raise CheckpointError(f"cannot read {directory}: {first_line(error)}; make it readable") from error
    if damage:
        raise CheckpointError(f"the exported model in {directory} is damaged: {damage}; export it again")
    description = json.loads(content[DESCRIPTION])
    try:
        program = jax.export.deserialize(bytearray(content[PROGRAM]))
    except Exception as error:  # whatever another version makes of it: the digest says that the file is whole
        raise CheckpointError(
            f"jax {jax.__version__} does not read {directory}/{PROGRAM}, which jax {description['versions']['jax']} "
            f"wrote: {first_line(error)}; export it again with this version"
        ) from error
    image = description["image"]
    return ExportedModel(
        logits=jax.jit(program.call),
        preprocess=functools.partial(decode.read_view, size=image["size"], fraction=image["crop_fraction"]),
        class_ids=tuple(description["class_ids"]),
        class_names=tuple(description["class_names"]),
        description=description,
    )


@contextlib.contextmanager
def _appearing(output):
    """A new directory beside `output`, which takes its place if all goes well and is removed if not."""
    if is_remote(output):
        raise ConfigError(f"cannot export to {output}; give a local --output and copy it")
    output = absolute(output)
    partial = output.with_name(f".{output.name}.stce-export")  # nobody else's
    try:
        if os.path.lexists(output) and (not output.is_dir() or any(output.iterdir())):
            raise ConfigError(f"{output} is there already; give another --output, or remove it")
        shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
        partial.mkdir(parents=True)
        try:
            yield partial
            os.rename(partial, output)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {first_line(error)}; give another --output") from error


def _program(run, variables, platforms, batch):
    """The `jax.export.Exported` of uint8 pixels [B, S, S, 3] -> logits [B, classes], weights inside."""

    def logits(pixels):
        return run.model.apply(variables, augment.normalize(pixels, mean=run.mean, std=run.std), train=False)

    (images,) = jax.export.symbolic_shape("batch") if batch is None else (batch,)
    pixels = jax.ShapeDtypeStruct((images, run.config.image_size, run.config.image_size, 3), jnp.uint8)
    return jax.export.export(jax.jit(logits), platforms=list(platforms))(pixels)


def _describe(run, program, ema):
    """What model.json says."""
    config, size = run.config, run.config.image_size
    fraction = config.augment.eval_crop_fraction
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
            "preprocess": "decode to 8-bit RGB, ignoring EXIF orientation; resize the short side to resize_short_side, "
            "the long side in proportion, rounded down (Pillow's BICUBIC); cut out the central size x size pixels",
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


def _lengths(array):
    """A shape for JSON; what is symbolic as its name."""
    return [length if isinstance(length, int) else str(length) for length in array.shape]


def _compare_weights(path, run, variables):
    written, _ = weights.read_weights(str(path), variables, run.model, run.class_ids)
    for name, array in weights.flatten(variables).items():
        if (written[name].dtype, written[name].tobytes()) != (array.dtype, array.tobytes()):
            raise CheckpointError(f"{path.name} was read back with another {name}; the disk or the memory is faulty")


def _compare_logits(directory, run, variables, batch_sizes):
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
