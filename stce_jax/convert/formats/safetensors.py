"""The format `safetensors`: the weights by this package's names, and all that is needed to build the model again.

Files: weights.safetensors, which `--init_from` takes, and model.json.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stce_jax.convert.comparison import compare_logits, compare_weights, of_images
from stce_jax.convert.description import DESCRIPTION, WEIGHTS, describe, write_description
from stce_jax.models.factory import create_model
from stce_jax.paths import read_json
from stce_jax.training.assemble import Run
from stce_jax.workdir.weights import flatten, read_file, save_weights, unflatten


def write(directory: Path, run: Run, *, ema: bool) -> dict[str, Any]:
    """Writes a run as weights and their description; see `formats`.

    What is compared is a model that is built of the two files alone.
    """
    return write_weights(directory, run, ema=ema, file=WEIGHTS)


def write_weights(directory: Path, run: Run, *, ema: bool, file: str) -> dict[str, Any]:
    """`write`, with another name for the file of weights."""
    variables = unflatten(flatten(run.variables))
    save_weights(directory / file, variables, run.class_ids)
    write_description(directory, describe(run, ema=ema, normalised_inside=False, more={"weights": file}))
    compare_weights(directory / file, run, variables)
    description = read_json(directory / DESCRIPTION)
    image, own = description["image"], unflatten(read_file(directory / file)[0])
    logits = of_images(_model(description), own, mean=image["mean"], std=image["std"])
    return {
        "step": run.step,
        "dtype": description["model"]["dtype"],
        "bytes": (directory / file).stat().st_size,
        **compare_logits(run, variables, logits),
    }


def _model(description: Mapping[str, Any]) -> Any:
    """The model that a description is of."""
    classes, size = len(description["class_ids"]), description["image"]["size"]
    return create_model(num_classes=classes, image_size=size, **description["model"])
