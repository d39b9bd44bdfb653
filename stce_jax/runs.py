"""Opening a workdir: its config, model, parameters, class names and preprocessing."""

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from stce_jax import configuration
from stce_jax.data import augment, decode
from stce_jax.engine.checkpoint import Checkpoints
from stce_jax.engine.mesh import make_mesh
from stce_jax.engine.state import abstract_variables
from stce_jax.errors import ConfigError
from stce_jax.models.factory import create_model

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model and what is needed to use it.

    Attributes:
      config: the run's ConfigDict.
      model: `VisionTransformer`; `model.apply(variables, images, train=False)` gives logits [B, classes].
      variables: parameters and BatchNorm statistics.
      class_names: the classes in the order of the logits.
      preprocess: path, encoded bytes, or uint8 array [H, W, 3] -> float32 [S, S, 3], S = config.image_size.
      step: the checkpoint's.
      epoch: passes over the training images it had seen.
    """

    config: Any
    model: Any
    variables: Any
    class_names: tuple[str, ...]
    preprocess: Callable
    step: int
    epoch: float


def load_run(workdir, checkpoint="last", ema=False):
    """Loads a run that `stce train` made.

    Args:
      workdir: its directory.
      checkpoint: "last", "best" (by top-1 on the validation images), or a step.
      ema: load the weights' moving average instead of the weights.

    Raises:
      ConfigError: the workdir is none of a run.
      CheckpointError: the checkpoint is missing or damaged.

    Example:
      >>> run = load_run("runs/digits")
      >>> logits = run.model.apply(run.variables, run.preprocess("seven.png")[None], train=False)
    """
    config = read_config(workdir)
    with Checkpoints(Path(workdir) / CHECKPOINTS) as checkpoints:
        step = checkpoints.find(checkpoint)
        meta = checkpoints.restore_meta(step)
        model = build_model(config, len(meta["class_names"]))
        target = abstract_variables(model, config.image_size)
        variables = checkpoints.restore_variables(step, target, make_mesh(), ema=ema)
    preprocess = functools.partial(
        _preprocess,
        size=config.image_size,
        fraction=config.augment.eval_crop_fraction,
        mean=meta["mean"],
        std=meta["std"],
    )
    return Run(config, model, variables, tuple(meta["class_names"]), preprocess, step, meta["epoch"])


def build_model(config, num_classes):
    """The model that a config names; options that are None stay the named model's."""
    options = {key: value for key, value in config.model.items() if key != "name" and value is not None}
    return create_model(config.model.name, num_classes=num_classes, image_size=config.image_size, **options)


def checkpoint_meta(dataset, epoch):
    """What a checkpoint says besides arrays, so that a run can be used without its dataset."""
    return {
        "class_names": list(dataset.class_names),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "epoch": epoch,
    }


def read_config(workdir):
    """The config of a workdir."""
    path = Path(workdir) / CONFIG_FILE
    try:
        return configuration.from_json(path.read_text())
    except OSError as error:
        raise ConfigError(f"{workdir} is no workdir of a run: cannot read {path.name}: {error.strerror}") from error


def claim_workdir(workdir, config):
    """Makes a workdir for a config, or checks that it is that config's already.

    Raises:
      ConfigError: it cannot be written, or belongs to another config.
    """
    workdir = Path(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if (workdir / CONFIG_FILE).exists():
            changed = configuration.differences(read_config(workdir), config)
            if changed:
                raise ConfigError(
                    f"{workdir} belongs to another config ({'; '.join(changed)}); use another workdir, or that config"
                )
        else:
            partial = workdir / f"{CONFIG_FILE}.partial"
            partial.write_text(configuration.to_json(config))
            os.replace(partial, workdir / CONFIG_FILE)
    except OSError as error:
        raise ConfigError(f"cannot write to workdir {workdir}: {error.strerror}; give another --workdir") from error


def _preprocess(image, *, size, fraction, mean, std):
    if isinstance(image, str | os.PathLike):
        image, name = Path(image).read_bytes(), str(image)
    else:
        name = "the image"
    if isinstance(image, bytes):
        image = decode.decode_image(image, name)
    return np.asarray(augment.normalize(decode.center_crop(image, size, fraction), mean=mean, std=std))
