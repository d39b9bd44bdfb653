"""The format `jax`: a program with its weights inside, for `jax.export` and `stce_jax.load_exported`.

Shape letters: B batch, S image side.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from stce_jax.convert.comparison import COMPARED, compare_logits, compare_weights
from stce_jax.convert.description import describe, write_description
from stce_jax.convert.files import OWN_WEIGHTS
from stce_jax.convert.program import PROGRAM, load_exported
from stce_jax.data.loader import LARGEST_BATCH
from stce_jax.errors import ConfigError, check_whole
from stce_jax.models.ops.parts import whole_batches
from stce_jax.paths import open_path, write_bytes
from stce_jax.recipe import augment
from stce_jax.training.assemble import Run
from stce_jax.workdir.digests import write_digests
from stce_jax.workdir.weights import flatten, save_weights, unflatten

OPTIONS = ("platforms", "batch")
PLATFORMS = ("cpu", "cuda", "tpu")


def write(
    directory: Path, run: Run, *, ema: bool, platforms: Sequence[str] = PLATFORMS, batch: int | None = None
) -> dict[str, Any]:
    """Writes a run as a program, reads it back and compares: see `formats` and `stce_jax.verbs.export.export`.

    Args:
      directory: where the files are written.
      run: of `load_run`.
      ema: whether the run's variables are the moving average, for the description.
      platforms: where the program shall run, of "cpu", "cuda", "rocm" and "tpu"; this machine's must be among them.
      batch: images in every call; None: any number.

    Raises:
      OSError: a file cannot be written.
      CheckpointError: what was read back differs from the run.
    """
    variables = unflatten(flatten(run.variables))  # on the host, wherever the run's were
    program = _program(run, variables, platforms, batch)
    write_bytes(directory / PROGRAM, program.serialize())
    write_description(directory, _describe(run, program, ema))
    save_weights(directory / OWN_WEIGHTS, variables, run.class_ids)
    write_digests(open_path(directory))
    compare_weights(directory / OWN_WEIGHTS, run)
    exported = load_exported(directory)
    compared = compare_logits(run, exported.logits, COMPARED if batch is None else (batch,))
    return {
        "step": run.step,
        "dtype": exported.description["model"]["dtype"],
        "platforms": list(program.platforms),
        "bytes": (directory / PROGRAM).stat().st_size,
        **compared,
    }


def check(*, platforms: Sequence[str] = PLATFORMS, batch: int | None = None) -> None:
    """Raises ConfigError for a batch that cannot be, platforms that there are not, or without this machine's."""
    here = jax.export.default_export_platform()
    for platform in platforms:
        if platform not in (*PLATFORMS, "rocm"):
            raise ConfigError(f"there is no platform {platform!r}; give some of {', '.join(PLATFORMS)}, rocm")
    if here not in platforms:
        raise ConfigError(f"the exported model is compared here, on {here}: put {here} among the platforms, too")
    if batch is not None:
        check_whole("batch", batch, 1, LARGEST_BATCH)


def _program(
    run: Run, variables: Mapping[str, Any], platforms: Sequence[str], batch: int | None
) -> jax.export.Exported:
    """The program of pixels -> logits, weights inside."""

    def logits(pixels: UInt8[Array, "B S S 3"]) -> Float[Array, "B classes"]:
        return run.model.apply(variables, augment.normalize(pixels, mean=run.mean, std=run.std), train=False)

    (images,) = jax.export.symbolic_shape("batch") if batch is None else (batch,)
    pixels = jax.ShapeDtypeStruct((images, run.config.image_size, run.config.image_size, 3), jnp.uint8)
    with whole_batches():
        return jax.export.export(jax.jit(logits), platforms=list(platforms))(pixels)


def _describe(run: Run, program: jax.export.Exported, ema: bool) -> dict[str, Any]:
    """What model.json says."""
    pixels: Any
    logits: Any
    (pixels,), (logits,) = program.in_avals, program.out_avals
    more = {"platforms": list(program.platforms), "calling_convention": program.calling_convention_version}
    shapes = {"shape": _lengths(pixels), "logits": _lengths(logits)}
    return describe(run, ema=ema, normalised_inside=True, **shapes, more=more)


def _lengths(array: Any) -> list[int | str]:
    """A shape for JSON; what is symbolic as its name."""
    return [length if isinstance(length, int) else str(length) for length in array.shape]
