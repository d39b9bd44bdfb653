"""Whether what was exported is the run: weights to the bit, logits up to rounding.

Shape letters: B batch, S image side.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from stce_jax.convert.initial import read_weights
from stce_jax.errors import CheckpointError
from stce_jax.models.bodies import Body
from stce_jax.recipe import augment
from stce_jax.training.assemble import Run
from stce_jax.workdir.weights import flatten

COMPARED = (1, 3)  # batch sizes at which the exported model must agree with the live one
# How far logits may differ, as a share of the greatest. GPUs multiply float32 in TF32, whose step is 2^-10.
ROUNDING = {"float32": 2**-10, "bfloat16": 2**-5}
ROUNDING_ON_CPU = 2**-14  # of float32
Logits = Callable[[UInt8[np.ndarray, "B S S 3"]], Any]


def compare_weights(path: Path, run: Run, variables: Mapping[str, Any]) -> None:
    """Reads a file of weights as `--init_from` does; raises CheckpointError unless each has the run's bits."""
    written, _ = read_weights(str(path), variables, run.model, run.class_ids)
    compare_arrays(path.name, written, flatten(variables))


def compare_arrays(file: str, written: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """Raises CheckpointError unless the arrays have the same names, dtypes, shapes and bits."""
    if written.keys() != expected.keys():
        raise CheckpointError(f"{file} was read back with other arrays than were written; the disk is faulty")
    for name, array in expected.items():
        found = written[name]
        if (found.dtype, found.shape, found.tobytes()) != (array.dtype, array.shape, array.tobytes()):
            raise CheckpointError(f"{file} was read back with another {name}; the disk or the memory is faulty")


def of_images(model: Body, variables: Mapping[str, Any], *, mean: Sequence[float], std: Sequence[float]) -> Logits:
    """uint8 pixels -> a model's logits, for `compare_logits`."""
    return lambda pixels: _apply(model, variables, augment.normalize(pixels, mean=mean, std=std))


@functools.partial(jax.jit, static_argnums=0)  # equal models are compiled once
def _apply(model: Body, variables: Mapping[str, Any], images: jax.Array) -> jax.Array:
    return model.apply(variables, images, train=False)


def compare_logits(
    run: Run, variables: Mapping[str, Any], exported: Logits, batch_sizes: Sequence[int] = COMPARED
) -> dict[str, Any]:
    """Compares what was exported with the live model, on pixels drawn by chance, the same each time.

    Args:
      run, variables: the run, and its variables on the host.
      exported: uint8 pixels [B, S, S, 3] -> logits.
      batch_sizes: how many images are compared at a time.

    Returns:
      {"batch_sizes", "difference" (the greatest of a logit), "greatest_logit"}, for the dict of a format's `write`.

    Raises:
      CheckpointError: they differ by more than rounding explains.
    """
    live = of_images(run.model, variables, mean=run.mean, std=run.std)
    rng, size = np.random.default_rng(0), run.config.image_size
    difference = greatest = 0.0
    for count in batch_sizes:
        pixels = rng.integers(0, 256, (count, size, size, 3), np.uint8)
        found, expected = np.asarray(exported(pixels)), np.asarray(live(pixels))
        if found.shape != expected.shape:
            raise CheckpointError(
                f"the exported model gives logits of the shape {found.shape}, the run {expected.shape}; "
                "nothing was exported"
            )
        # A NaN on either side stays one, and no NaN is below a bound.
        difference = np.maximum(difference, np.abs(found - expected).max())
        greatest = np.maximum(greatest, np.abs(expected).max())
    dtype = np.dtype(run.model.dtype).name
    share = ROUNDING_ON_CPU if (dtype, jax.default_backend()) == ("float32", "cpu") else ROUNDING[dtype]
    allowed = share * greatest
    if not difference <= allowed:
        raise CheckpointError(
            f"the exported model differs from the run: logits by up to {difference:.1e} of {greatest:.1f}, "
            f"rounding explains {allowed:.1e}; nothing was exported"
        )
    return {
        "batch_sizes": list(batch_sizes),
        "difference": float(difference),
        "greatest_logit": float(greatest),
    }
