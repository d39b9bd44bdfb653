"""The format `safetensors`: the weights by this package's names, and all that is needed to build the model again.

Files: weights.safetensors, which `--init_from` takes, and model.json.
"""

from pathlib import Path
from typing import Any

from stce_jax.convert.comparison import compare_logits, compare_weights, logits_of_source
from stce_jax.convert.description import describe, write_description
from stce_jax.convert.files import OWN_WEIGHTS
from stce_jax.convert.sources import open_source
from stce_jax.training.assemble import Run
from stce_jax.workdir.weights import save_weights


def write(directory: Path, run: Run, *, ema: bool) -> dict[str, Any]:
    """Writes a run as weights and their description; see `formats`. What is compared is the model that both make."""
    return write_weights(directory, run, ema=ema, file=OWN_WEIGHTS)


def write_weights(directory: Path, run: Run, *, ema: bool, file: str) -> dict[str, Any]:
    """`write`, with another name for the file of weights."""
    save_weights(directory / file, run.variables, run.class_ids)
    description = describe(run, ema=ema, normalised_inside=False, more={"weights": file})
    write_description(directory, description)
    compare_weights(directory / file, run)
    return {
        "step": run.step,
        "dtype": description["model"]["dtype"],
        "bytes": (directory / file).stat().st_size,
        **compare_logits(run, logits_of_source(open_source(directory))),
    }
