"""A run as one file of plain PyTorch, with its weights beside it. The package never imports PyTorch to write them.

Shape letters: B batch, S image side.
"""

import importlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from jaxtyping import Float, UInt8

from stce_jax.convert.torch_source.assembly import program
from stce_jax.convert.torch_source.bodies import call_of
from stce_jax.convert.torch_source.weights import state_dict
from stce_jax.errors import CheckpointError
from stce_jax.models.bodies import Body
from stce_jax.models.ops.norms import LAYER_NORM_EPSILON
from stce_jax.paths import first_line, write_bytes, write_text
from stce_jax.recipe import augment
from stce_jax.training.assemble import Run, describe
from stce_jax.training.preprocessing import view_options
from stce_jax.workdir.weights import flatten, unflatten

MODEL, WEIGHTS = "model.py", "model.safetensors"
COMPARED = (1, 3)  # batch sizes
ROUNDING = 2**-14  # how far logits may differ, as a share of the greatest: both sides compute in float32 throughout
NOT_COMPARED = "not compared with the run: torch is not installed; pip install torch, and export again, to have it done"
INTERPOLATIONS = ("bicubic", "bilinear")  # of those that runs may have PyTorch has these
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
    variables = unflatten(flatten(run.variables))  # on the host, wherever the run's were
    call, flat = call_of(run.model), flatten(variables)
    arrays = state_dict(run.model, flat)
    text = source(run, call, ema=ema, parameters=_parameters(flat))
    metadata = {"format": "pt", "class_ids": json.dumps(list(run.class_ids))}
    metadata["class_names"] = json.dumps(list(run.class_names))
    write_text(directory / MODEL, text)
    write_bytes(directory / WEIGHTS, safetensors.numpy.save(arrays, metadata=metadata))
    found = safetensors.numpy.load((directory / WEIGHTS).read_bytes())
    if found.keys() != arrays.keys() or any(found[name].tobytes() != arrays[name].tobytes() for name in arrays):
        raise CheckpointError(f"{WEIGHTS} was read back with other numbers; the disk or the memory is faulty")
    compared = compare(directory, run, variables)
    interpolation = view_options(run.config)["interpolation"]
    if interpolation not in INTERPOLATIONS:
        compared["notes"].append(
            f"PyTorch has no {interpolation}, by which the run's images are resized: preprocess does it by "
            f"{INTERPOLATIONS[0]}; resize by Pillow and call normalise to have the run's pixels"
        )
    return {
        "step": run.step,
        "dtype": "float32",
        "bytes": sum((directory / name).stat().st_size for name in (MODEL, WEIGHTS)),
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


def compare(directory: Path, run: Run, variables: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Compares the files with the run, on pixels drawn by chance, where PyTorch is installed.

    Both sides compute in float32, whatever the run was trained in. Some token reductions choose between tokens that may
    be as good as alike, and then rounding decides: with a reduction one of the four images may differ by more.

    Args:
      directory: of `write`. Its model.py is run: it must be one that was just written.
      run: of `load_run`.
      variables: the run's, on the host.

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
    logits = _logits_of(directory, torch)
    variables = unflatten(flatten(run.variables)) if variables is None else variables
    live = jax.jit(_in_float32(run).apply, static_argnames="train")
    found_by_image: list[float] = []
    greatest = 0.0
    for count in COMPARED:
        pixels = pictures(count, run.config.image_size)
        with jax.default_matmul_precision("float32"):
            images = augment.normalize(pixels, mean=run.mean, std=run.std)
            expected = np.asarray(live(variables, images, train=False))
        found_by_image += np.abs(logits(pixels) - expected).max(axis=1).tolist()
        greatest = np.maximum(greatest, np.abs(expected).max())
    chooses = getattr(run.model, "reduction", None) is not None
    differences = np.sort(found_by_image)  # NaN comes last
    allowed, decisive = ROUNDING * greatest, differences[-2 if chooses else -1]
    if not decisive <= allowed or not np.isfinite(differences[-1]):
        raise CheckpointError(
            f"{MODEL} differs from the run: logits by up to {differences[-1]:.1e} of {greatest:.1f}, rounding explains "
            f"{allowed:.1e}; nothing was exported"
        )
    notes = []
    if differences[-1] > allowed:
        notes.append(
            f"of {len(differences)} images one more differs by {differences[-1]:.1e}: rounding decided which of two "
            "tokens is kept or merged"
        )
    return {
        "batch_sizes": list(COMPARED),
        "difference": float(decisive if notes else differences[-1]),
        "greatest_logit": float(greatest),
        "by": f"torch {torch.__version__}",
        "notes": notes,
    }


def _not_compared(why: str) -> dict[str, Any]:
    return {"batch_sizes": [], "difference": None, "greatest_logit": None, "notes": [why]}


def _logits_of(directory: Path, torch: Any) -> Callable[[np.ndarray], np.ndarray]:
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


def pictures(count: int, size: int, seed: int = 0) -> UInt8[np.ndarray, "B S S 3"]:
    """Images drawn by chance, always the same: areas of colours and noise, so that tokens differ as real ones do."""
    rng = np.random.default_rng(seed)
    areas: Float[np.ndarray, "B S S 3"] = np.zeros((count, size, size, 3))
    for side in (2, 5, 11):
        coarse = rng.normal(0.0, 45.0, (count, side, side, 3))
        places = np.arange(size) * side // size
        areas += coarse[:, places][:, :, places]
    return (127.0 + areas + rng.normal(0.0, 12.0, areas.shape)).clip(0, 255).astype(np.uint8)


def _in_float32(run: Run) -> Body:
    """The run's model, computing in float32."""
    if np.dtype(run.model.dtype) == np.float32:
        return run.model
    config = run.config.copy_and_resolve_references()
    with config.unlocked():
        config.model.dtype = "float32"
    return describe(config, len(run.class_ids))[0]


def _parameters(flat: Mapping[str, np.ndarray]) -> int:
    return sum(array.size for path, array in flat.items() if path.startswith("params/"))
