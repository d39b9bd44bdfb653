"""What a run of `stce train` says of itself before its first step."""

from typing import Any

import jax

from stce_jax.analysis.costs import count_model, count_parameters
from stce_jax.models.bodies import Body
from stce_jax.platform.cpu_library import onednn_computes
from stce_jax.recipe.optimizers import peak_learning_rate
from stce_jax.training.setup import Setup
from stce_jax.workdir import parts
from stce_jax.workdir.loggers import logger_names
from stce_jax.workdir.metric_lines import FILE_NAME


def opening(setup: Setup, model: Body, *, trained: str, begins: str) -> dict[str, str]:
    """What a run is: {name: a few words}, in the order in which it is shown.

    Args:
      setup: of the run.
      model: its body.
      trained: which parameters are trained; "": all.
      begins: with which weights, or from which step.
    """
    config, timetable, devices = setup.config, setup.course.timetable, setup.mesh.size
    names = ", ".join(f"{part} {name or 'none'}" for part, name in parts.chosen(config.model).items())
    multiply_adds = count_model(model, config.image_size)["multiply_adds"]
    sides = tuple(config.progressive_sizes) or (config.image_size,)
    batch = [f"{config.batch_size} images"]
    if devices > 1:
        batch.append(f"{config.batch_size // devices} on each device")
    if config.accumulate > 1:
        batch.append(f"in {config.accumulate} micro-batches")
    return {
        "model": f"{config.model.name}: {names}",
        "parameters": trained or f"{count_parameters(setup.course.stepping.state_shapes.variables['params']):,}",
        "multiply-adds": f"{multiply_adds:,} an image of {config.image_size} pixels",
        "data": _data(config, setup.dataset),
        "image size": f"{', then '.join(map(str, sides))} pixels",
        "batch": ", ".join(batch),
        "epochs": f"{config.epochs:g}, {timetable.total:,} steps, an evaluation every {config.eval_every:g}",
        "optimizer": _optimizer(config),
        "devices": _devices(config, devices),
        "dtype": config.model.dtype or "float32",
        "workdir": f"{setup.workdir}: {', '.join([FILE_NAME, *logger_names(config.loggers)])}",
        "start": begins,
    }


def _data(config: Any, dataset: Any) -> str:
    place = f" in {config.data_dir}" if config.data_dir else ""
    images = f"training on {len(dataset.train):,} images, evaluating on {len(dataset.val):,}"
    held = " held out of them" if config.holdout else ""
    return f"{config.dataset}{place}: {images}{held}, {len(dataset.class_names):,} classes"


def _optimizer(config: Any) -> str:
    options = config.optimizer
    peak = peak_learning_rate(options.learning_rate, options.learning_rate_scaling, config.batch_size)
    return (
        f"{options.name}, learning rate {peak:.3g}, {options.schedule} after {options.warmup_epochs:g} epochs of "
        f"warm-up, weight decay {options.weight_decay:g}"
    )


def _devices(config: Any, devices: int) -> str:
    words = [f"{devices} of {jax.devices()[0].device_kind}"]
    if jax.process_count() > 1:
        words.append(f"{jax.process_count()} processes")
    if onednn_computes():
        words.append("products and convolutions by oneDNN, compiled at every start")
    if config.fsdp_devices > 1:
        words.append(f"parameters split over {config.fsdp_devices}")
    return ", ".join(words)
