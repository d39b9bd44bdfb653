"""What `model.json` says of an exported run: its options, classes, and how an image file becomes what it takes."""

import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stce_jax.convert.files import DESCRIPTION
from stce_jax.data.catalog import MULTI_LABEL, SINGLE_LABEL
from stce_jax.paths import write_text
from stce_jax.training.assemble import Run
from stce_jax.training.preprocessing import view_options
from stce_jax.workdir import parts

PIXELS = "pixels 0..255, [batch, row, column, (red, green, blue)]; normalised inside the program"
IMAGES = "images [batch, row, column, (red, green, blue)], normalised as `image` says"
INSIDE = "inside the program, not to be done again"
BEFORE = "before the model is called"
PROBABILITIES = {  # by config.task
    SINGLE_LABEL: "softmax are the classes' probabilities",
    MULTI_LABEL: "sigmoid is the probability of each label by itself",
}


def describe(
    run: Run,
    *,
    ema: bool,
    normalised_inside: bool,
    shape: Sequence[int | str] | None = None,
    logits: Sequence[int | str] | None = None,
    more: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What `model.json` says.

    Args:
      run: of `load_run`.
      ema: whether the run's variables are the moving average.
      normalised_inside: whether the exported program takes uint8 pixels; else it takes normalised float32.
      shape, logits: of its input and output where they are not those of any number of images.
      more: what the format adds, before the versions.
    """
    view = view_options(run.config)
    size, fraction, interpolation = (view[name] for name in ("size", "fraction", "interpolation"))
    packages = ("stce_jax", "jax", "jaxlib", "flax")
    return {
        "model": parts.all_options(run.config.model),
        "input": {
            "shape": list(shape or ("batch", size, size, 3)),
            "dtype": "uint8" if normalised_inside else "float32",
            "meaning": PIXELS if normalised_inside else IMAGES,
        },
        "output": {
            "shape": list(logits or ("batch", len(run.class_ids))),
            "dtype": "float32",
            "meaning": f"logits, [batch, class]; their {PROBABILITIES[run.config.task]}",
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
            "normalisation": "(pixels / 255 - mean) / std for each channel; "
            + (INSIDE if normalised_inside else BEFORE),
        },
        "class_ids": list(run.class_ids),
        "class_names": list(run.class_names),
        "step": run.step,
        "epoch": run.epoch,
        "moving_average": ema,
        **(more or {}),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def write_description(directory: Path, description: dict[str, Any]) -> None:
    """Writes `model.json` into a directory."""
    write_text(directory / DESCRIPTION, json.dumps(description, indent=2, ensure_ascii=False) + "\n")
