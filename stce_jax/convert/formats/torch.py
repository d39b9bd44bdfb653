"""A run as one file of plain PyTorch, with its weights beside it. The package never imports PyTorch to write them."""

import importlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from stce_jax.convert.comparison import (
    COMPARED,
    ROUNDING_OF_FLOAT32,
    Logits,
    check_difference,
    compare_arrays,
    differences_of,
    in_float32,
)
from stce_jax.convert.files import HUB_WEIGHTS
from stce_jax.convert.torch_source.assembly import program
from stce_jax.convert.torch_source.bodies import call_of
from stce_jax.convert.torch_source.weights import state_dict
from stce_jax.errors import CheckpointError
from stce_jax.models.ops.norms import LAYER_NORM_EPSILON
from stce_jax.paths import first_line, write_bytes, write_text
from stce_jax.training.assemble import Run
from stce_jax.training.preprocessing import view_options
from stce_jax.workdir.weights import flatten

MODEL = "model.py"
NOT_COMPARED = "not compared with the run: torch is not installed; pip install torch, and export again, to have it done"
INTERPOLATIONS = ("bicubic", "bilinear")  # those of a run's that PyTorch has
NAMED_CLASSES = 2**14  # more names would make the file unreadable; they are in the weights' metadata


def write(directory: Path, run: Run, *, ema: bool) -> dict[str, Any]:
    """Writes model.py and model.safetensors into a local directory, and compares them with the run.

    Args:
      directory: new or empty.
      run: of `load_run`.
      ema: whether the run's variables are the moving average, for the description.

    Returns:
      {"step", "dtype", "bytes" (of both files), "parameters", "batch_sizes", "difference", "greatest_logit", "by",
      "notes"}; see `compare` for those of the comparison.

    Raises:
      OSError: a file cannot be written.
      ConfigError: a part of the model has no PyTorch form.
      CheckpointError: what was written differs from the run.
    """
    call, flat = call_of(run.model), flatten(run.variables)
    arrays = state_dict(run.model, flat)
    text = source(run, call, ema=ema, parameters=_parameters(flat))
    metadata = {"format": "pt", "class_ids": json.dumps(list(run.class_ids))}
    metadata["class_names"] = json.dumps(list(run.class_names))
    write_text(directory / MODEL, text)
    write_bytes(directory / HUB_WEIGHTS, safetensors.numpy.save(arrays, metadata=metadata))
    compare_arrays(HUB_WEIGHTS, safetensors.numpy.load((directory / HUB_WEIGHTS).read_bytes()), arrays)
    compared = compare(directory, run)
    interpolation = view_options(run.config)["interpolation"]
    if interpolation not in INTERPOLATIONS:
        compared["notes"].append(
            f"PyTorch has no {interpolation}, by which the run's images are resized: preprocess does it by "
            f"{INTERPOLATIONS[0]}; resize by Pillow and call normalise to have the run's pixels"
        )
    return {
        "step": run.step,
        "dtype": "float32",
        "bytes": sum((directory / name).stat().st_size for name in (MODEL, HUB_WEIGHTS)),
        "parameters": _parameters(flat),
        **compared,
    }


def source(run: Run, call: Any, *, ema: bool, parameters: int) -> str:
    """The text of model.py; `call` is what makes the model."""
    version, view = importlib.metadata.version("stce_jax"), view_options(run.config)
    size = view["size"]
    weights = "moving average of the weights" if ema else "weights"
    docstring = (
        f"{run.config.model.name} in plain PyTorch, written by stce_jax {version}: "
        f"the {weights} of step {run.step}.\n\n"
        f"{parameters:,} parameters; images of {size} pixels; {len(run.class_ids)} classes. It needs torch alone, "
        "2.1 or newer:\n\n"
        "    import numpy, torch\n"
        "    from PIL import Image\n"
        "    from model import load, preprocess\n\n"
        "    model = load()\n"
        '    pixels = torch.from_numpy(numpy.array(Image.open("image.jpg").convert("RGB")))  # uint8 [H, W, 3]\n'
        "    with torch.inference_mode():\n"
        "        logits = model(preprocess(pixels))  # [1, classes]\n\n"
        "Images may be put together, [B, 3, height, width]. Modules have stce_jax's names. There is no dropout and no\n"
        "stochastic depth here: to train on, add what you need.\n"
    )
    constants = {
        "IMAGE_SIZE": size,
        "SHORT_SIDE": int(size / view["fraction"]),  # of an image, before the middle is cut out
        "INTERPOLATION": view["interpolation"] if view["interpolation"] in INTERPOLATIONS else INTERPOLATIONS[0],
        "NORM_EPSILON": getattr(run.model, "norm_epsilon", LAYER_NORM_EPSILON),
        "MEAN": tuple(map(float, run.mean)),  # of pixels / 255: red, green, blue
        "STD": tuple(map(float, run.std)),
    }
    names = {"CLASSES": tuple(map(str, run.class_names))} if len(run.class_names) <= NAMED_CLASSES else {}
    return program(call, docstring=docstring, constants=constants, names=names)


def compare(directory: Path, run: Run) -> dict[str, Any]:
    """Compares the files with the run, where PyTorch is installed.

    Both sides compute in float32, whatever the run was trained in. Some token reductions choose between tokens that may
    be as good as alike, and then rounding decides: with a reduction one of the four images may differ by more.

    Args:
      directory: of `write`. Its model.py is run: it must be one that was just written.
      run: of `load_run`.

    Returns:
      {"batch_sizes" (compared, [] without PyTorch), "difference" (the greatest of a logit), "greatest_logit" (both None
      without PyTorch), "by", "notes" (lines for people)}.

    Raises:
      CheckpointError: they differ by more than rounding explains.
    """
    try:
        torch: Any = importlib.import_module("torch") if importlib.util.find_spec("torch") else None
    except Exception as error:  # whatever an installation raises that is not whole
        return _not_compared(f"not compared with the run: torch cannot be imported ({first_line(error)})")
    if torch is None:
        return _not_compared(NOT_COMPARED)
    with jax.default_matmul_precision("float32"):
        differences, greatest = differences_of(in_float32(run), _logits_of(directory, torch))
    difference, largest = differences[-1], differences[-1]
    notes = []
    chooses = getattr(run.model, "reduction", None) is not None
    if chooses and np.isfinite(largest) and largest > ROUNDING_OF_FLOAT32 * greatest:
        difference = differences[-2]
        notes.append(
            f"of {len(differences)} images one more differs by {largest:.1e}: rounding decided which of two tokens is "
            "kept or merged"
        )
    check_difference(MODEL, difference, greatest, ROUNDING_OF_FLOAT32)
    return {
        "batch_sizes": list(COMPARED),
        "difference": float(difference),
        "greatest_logit": greatest,
        "by": f"torch {torch.__version__}",
        "notes": notes,
    }


def _not_compared(why: str) -> dict[str, Any]:
    return {"batch_sizes": [], "difference": None, "greatest_logit": None, "notes": [why]}


def _logits_of(directory: Path, torch: Any) -> Logits:
    """uint8 pixels -> logits, by the files; CheckpointError where these do not run."""
    space: dict[str, Any] = {"__name__": "model", "__file__": str(directory / MODEL)}

    def logits(pixels: np.ndarray) -> np.ndarray:
        try:
            if "model" not in space:
                exec(compile((directory / MODEL).read_text("utf-8"), MODEL, "exec"), space)
                space["model"] = space["load"]()
            with torch.inference_mode():
                return space["model"](space["normalise"](torch.from_numpy(pixels))).numpy()
        except Exception as error:  # of a piece that does not fit its weights, or another
            raise CheckpointError(f"{MODEL} does not run: {first_line(error)}; nothing was exported") from error

    return logits


def _parameters(flat: Mapping[str, np.ndarray]) -> int:
    return sum(array.size for path, array in flat.items() if path.startswith("params/"))
