"""Whether what was exported is the run: weights to the bit, logits up to rounding.

Shape letters: B batch, S image side, N images.
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from stce_jax.convert.initial import read_weights
from stce_jax.convert.sources import Source
from stce_jax.data.decode import decode_image
from stce_jax.errors import CheckpointError, StceError
from stce_jax.models.bodies import Body
from stce_jax.paths import read_bytes
from stce_jax.recipe import augment
from stce_jax.training.assemble import Run, build_model
from stce_jax.workdir.weights import flatten, unflatten

PHOTOGRAPHS = ("china.jpg", "flower.jpg")  # scikit-learn has them, under CC BY 2.0
COMPARED = (1, 3)  # batch sizes at which the exported model must agree with the live one
# How far logits may differ, as a share of the greatest. GPUs multiply float32 in TF32, whose step is 2^-10.
ROUNDING = {"float32": 2**-10, "bfloat16": 2**-5}
ROUNDING_OF_FLOAT32 = 2**-14  # where both sides multiply in float32 throughout, as CPUs do
Logits = Callable[[UInt8[np.ndarray, "B S S 3"]], Any]


def compare_weights(path: Path, run: Run) -> None:
    """Reads a file of weights as `--init_from` does; raises CheckpointError unless each has the run's bits."""
    written, _ = read_weights(str(path), run.variables, run.model, run.class_ids)
    compare_arrays(path.name, written, flatten(run.variables))


def compare_arrays(file: str, written: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """Raises CheckpointError unless the arrays have the same names, dtypes, shapes and bits."""
    if written.keys() != expected.keys():
        raise CheckpointError(f"{file} was read back with other arrays than were written; the disk is faulty")
    for name, array in expected.items():
        found = written[name]
        if (found.dtype, found.shape, found.tobytes()) != (array.dtype, array.shape, array.tobytes()):
            raise CheckpointError(f"{file} was read back with another {name}; the disk or the memory is faulty")


def logits_of_source(opened: Source) -> Logits:
    """uint8 pixels -> logits of the model and the normalisation that an exported directory alone describes."""
    seen = opened.preprocessing
    assert seen.mean is not None and seen.std is not None
    return _logits_of(opened.build(), unflatten(opened.arrays), seen.mean, seen.std)


def _logits_of(model: Body, variables: Mapping[str, Any], mean: Sequence[float], std: Sequence[float]) -> Logits:
    return lambda pixels: _apply(model, variables, augment.normalize(pixels, mean=mean, std=std))


@functools.partial(jax.jit, static_argnums=0)  # equal models are compiled once
def _apply(model: Body, variables: Mapping[str, Any], images: jax.Array) -> jax.Array:
    return model.apply(variables, images, train=False)


def compare_logits(run: Run, exported: Logits, batch_sizes: Sequence[int] = COMPARED) -> dict[str, Any]:
    """Compares what was exported with the live model.

    Args:
      run: of `load_run`.
      exported: uint8 pixels [B, S, S, 3] -> logits.
      batch_sizes: how many images are compared at a time.

    Returns:
      {"batch_sizes", "difference" (the greatest of a logit), "greatest_logit"}, for the dict of a format's `write`.

    Raises:
      CheckpointError: they differ by more than rounding explains.
    """
    differences, greatest = differences_of(run, exported, batch_sizes)
    dtype = np.dtype(run.model.dtype).name
    on_cpu = (dtype, jax.default_backend()) == ("float32", "cpu")
    share = ROUNDING_OF_FLOAT32 if on_cpu else ROUNDING[dtype]
    check_difference("the exported model", differences[-1], greatest, share)
    return {"batch_sizes": list(batch_sizes), "difference": float(differences[-1]), "greatest_logit": greatest}


def differences_of(
    run: Run, exported: Logits, batch_sizes: Sequence[int] = COMPARED
) -> tuple[Float[np.ndarray, "N"], float]:
    """(the greatest difference of a logit of each image, ascending, NaN last; the greatest logit), on `pictures`.

    Args:
      run, exported, batch_sizes: see `compare_logits`.

    Raises:
      CheckpointError: the logits have another shape.
    """
    live = _logits_of(run.model, unflatten(flatten(run.variables)), run.mean, run.std)
    differences: list[float] = []
    greatest = 0.0
    for count in batch_sizes:
        pixels = pictures(count, run.config.image_size, seed=count)
        found, expected = np.asarray(exported(pixels)), np.asarray(live(pixels))
        if found.shape != expected.shape:
            raise CheckpointError(
                f"the exported model gives logits of the shape {found.shape}, the run {expected.shape}; "
                "nothing was exported"
            )
        differences += np.abs(found - expected).max(axis=1).tolist()
        greatest = np.maximum(greatest, np.abs(expected).max())
    return np.sort(differences), float(greatest)


def check_difference(what: str, difference: float, greatest: float, share: float) -> None:
    """Raises CheckpointError if logits differ by more than a share of the greatest, or are NaN on either side."""
    allowed = share * greatest
    if not difference <= allowed:
        raise CheckpointError(
            f"{what} differs from the run: logits by up to {difference:.1e} of {greatest:.1f}, "
            f"rounding explains {allowed:.1e}; nothing was exported"
        )


def pictures(count: int, size: int, seed: int = 0) -> UInt8[np.ndarray, "B S S 3"]:
    """Squares of two photographs, cut out by chance; a seed gives the same ones always."""
    rng, found = np.random.default_rng(seed), []
    for number in range(count):
        photograph = _photographs()[number % 2]
        height, width, _ = photograph.shape
        side = rng.integers(height // 2, height, endpoint=True)
        left, top = (rng.integers(length - side, endpoint=True) for length in (width, height))
        box = (left, top, left + side, top + side)
        found.append(Image.fromarray(photograph).resize((size, size), Image.Resampling.BICUBIC, box))
    return np.stack([np.asarray(image) for image in found])


@functools.cache
def _photographs() -> tuple[UInt8[np.ndarray, "H W 3"], ...]:
    """Two photographs that scikit-learn has; areas of colours where an installation was stripped of them."""
    spec = importlib.util.find_spec("sklearn")
    folder = Path(spec.origin if spec and spec.origin else "").parent / "datasets" / "images"
    try:
        return tuple(decode_image(read_bytes(folder / name), name) for name in PHOTOGRAPHS)
    except (OSError, StceError):
        areas = np.random.default_rng(0).integers(0, 256, (2, 12, 18, 3), np.uint8)
        return tuple(np.asarray(Image.fromarray(one).resize((640, 427), Image.Resampling.BICUBIC)) for one in areas)


def in_float32(run: Run) -> Run:
    """The run with a model that computes in float32, for libraries that compute in nothing else."""
    if np.dtype(run.model.dtype) == np.float32:
        return run
    config = run.config.copy_and_resolve_references().unlock()
    config.model.dtype = "float32"
    return dataclasses.replace(run, config=config.lock(), model=build_model(config, len(run.class_ids)))
