"""From a config to what it names: dataset, model, augmentation, optimizer, batches; from a workdir to a trained model.

The only file that knows the config and everything that is made of it. Each section is handed to the one function that
reads, checks and uses it.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from ml_collections import config_dict

from stce_jax.data import catalog, loader
from stce_jax.data.catalog import Dataset
from stce_jax.data.feeder import Feeder
from stce_jax.data.forms import ImageLike
from stce_jax.data.holdout import hold_out
from stce_jax.data.labels import class_counts, labels_of
from stce_jax.data.order import Order, make_order
from stce_jax.data.views import Views
from stce_jax.errors import CheckpointError, ConfigError
from stce_jax.models import factory
from stce_jax.models.bodies import Body
from stce_jax.paths import first_line
from stce_jax.processes import peers as processes
from stce_jax.processes.speaking import warn
from stce_jax.recipe import augment
from stce_jax.recipe.mixing import place_in_batch
from stce_jax.training.mesh import connect, make_mesh, sharded_shapes
from stce_jax.training.options import check_options, check_saved, on_devices
from stce_jax.training.other_reduction import only, with_reduction
from stce_jax.training.preprocessing import preprocess, view_options, with_normalization
from stce_jax.training.state import abstract_variables
from stce_jax.training.timetable import Origin, Timetable
from stce_jax.workdir import config as configuration
from stce_jax.workdir import parts
from stce_jax.workdir.checkpoints import Checkpoints
from stce_jax.workdir.layout import checkpoints_in, config_of, read_config

MOST_STEPS = 2**31 - 1  # a state counts them in 32 bits


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model and what is needed to use it.

    Attributes:
      config: the run's ConfigDict.
      model: a body, see `models.bodies`; `model.apply(variables, images, train=False)` gives logits [B, classes].
      variables: parameters and BatchNorm statistics.
      class_ids: the classes in the order of the logits: names of folders, WordNet ids.
      class_names: the same for people.
      preprocess: path, encoded bytes, uint8 array [H, W, 3] or Pillow image, see `decode.pixels_of` -> float32
        [S, S, 3], S = config.image_size.
      mean, std: of the training pixels scaled to 0..1, a number a channel.
      step: that of the checkpoint.
      epoch: passes over the training images until then.
    """

    config: config_dict.ConfigDict
    model: Body
    variables: Any
    class_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    preprocess: Callable[[ImageLike], Float[np.ndarray, "S S 3"]]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    step: int
    epoch: float


def load_run(
    workdir: str | Path, checkpoint: str | int = "last", ema: bool = False, config: str = "", *, reduction: str = ""
) -> Run:
    """Loads a run that `stce train` made.

    Args:
      workdir: its directory.
      checkpoint: "last", "best" (by top-1, or mAP, on the validation images), or a step.
      ema: load the weights' moving average instead of the weights.
      config: the config file that registers the run's modules, if they are not part of the package. It is run, and
        nothing else is read from it. A workdir names modules and never makes anything be imported.
      reduction: give the model another token reduction than it was trained with, see `other_reduction.parse`; "none"
        takes it off. It must have no other parameters than the run. The config stays the run's.

    Raises:
      ConfigError: the workdir is none of a run, the run uses a module that is not registered, or it cannot have the
        reduction.
      CheckpointError: the checkpoint is missing or damaged.

    Example:
      >>> run = load_run("runs/digits")
      >>> logits = run.model.apply(run.variables, run.preprocess("seven.png")[None], train=False)
    """
    if config:
        configuration.run_config_file(config)
    read_config(workdir)  # refuses what is no workdir of a run
    checkpoints = Checkpoints(checkpoints_in(workdir))
    alone_or_first = not processes.several() or processes.is_main()
    step = processes.share(checkpoints.find(checkpoint) if alone_or_first else None)
    meta = checkpoints.restore_meta(step, "config", "class_ids", "class_names", "mean", "std", "epoch")
    own = config_of(meta, step)  # the checkpoint's: that of the workdir may have changed since
    try:
        model, shapes = describe(own, len(meta["class_names"]))
    except ConfigError as error:
        raise CheckpointError(f"checkpoint {step} in {workdir} cannot be used: {error}") from error
    wanted = shapes
    if reduction:
        model, wanted = with_reduction(own, model, shapes, reduction)
    mesh = make_mesh()
    connect(mesh)  # or one that reads its part sooner would give the others up
    target = sharded_shapes(shapes, mesh)
    variables = only(checkpoints.restore_variables(step, target, ema=ema), wanted)
    return Run(
        config=own,
        model=model,
        variables=variables,
        class_ids=tuple(meta["class_ids"]),
        class_names=tuple(meta["class_names"]),
        preprocess=functools.partial(preprocess, mean=meta["mean"], std=meta["std"], **view_options(own)),
        mean=tuple(meta["mean"]),
        std=tuple(meta["std"]),
        step=step,
        epoch=meta["epoch"],
    )


def describe(config: config_dict.ConfigDict, num_classes: int) -> tuple[Body, Any]:
    """(model, shapes of its variables) of the config of a run that is there already, whose values may be anybody's.

    Raises:
      ConfigError: no run can have that config.
    """
    check_saved(config)
    try:
        model = build_model(config, num_classes)
        return model, abstract_variables(model, config.image_size)
    except Exception as error:  # whatever options lead to that their module does not check
        raise ConfigError(f"its config is none of a run: {first_line(error)}") from error


def load_config(name: str, overrides: Sequence[str] = ()) -> config_dict.ConfigDict:
    """`workdir.config.load_config`, and its values checked; raises ConfigError for one that cannot work."""
    config = configuration.load_config(name, overrides)
    check_options(config)
    return config


def build_model(config: config_dict.ConfigDict, num_classes: int) -> Body:
    """The model that a config names; options that are None stay the preset's."""
    model, options = config.model, parts.options(config.model)
    options |= {"num_classes": num_classes, "image_size": config.image_size, "dtype": model.dtype}
    return factory.build_model(model.name, **options)


def open_dataset(config: config_dict.ConfigDict, data_dir: str = "") -> Dataset:
    """The dataset that a config names, in `data_dir` or where the config says, with the config's normalisation.

    With `config.holdout`, its `val` is the part that is held out, and no test image is read. Reports which files were
    passed over.
    """
    splits = ("train",) if config.holdout else catalog.SPLITS  # val/ need not be there
    place = data_dir or config.data_dir
    raw = config.raw_short_side
    dataset = catalog.open_dataset(config.dataset, place, config.classes, splits, raw_short_side=raw, task=config.task)
    report_passed_over(dataset)
    if config.holdout:
        dataset = hold_out(dataset, config.holdout)
    return with_normalization(dataset, config)


def report_passed_over(dataset: Dataset) -> None:
    """Prints once, on standard error, which files of class folders are taken for no images."""
    if dataset.passed_over:
        warn(dataset.passed_over)


def build_augment(config: config_dict.ConfigDict, dataset: Dataset, **of_run: Any) -> Callable[..., Any]:
    """The augmentation that the train step runs on the devices, see `augment.make_augment`."""
    classes = len(dataset.class_names)
    return augment.make_augment(classes, mean=dataset.mean, std=dataset.std, **of_run, **on_devices(config))


def build_timetable(config: config_dict.ConfigDict, dataset: Dataset) -> Timetable:
    """The timetable of a new run; raises ConfigError if that has no step."""
    images = len(_train(dataset))
    timetable = Timetable(images, config.batch_size, config.epochs, config.eval_every)
    if timetable.total < 1:
        raise ConfigError(f"{config.epochs} epochs of {images} images are less than one batch of {config.batch_size}")
    for key, epochs in (("epochs", config.epochs), ("optimizer.warmup_epochs", config.optimizer.warmup_epochs)):
        if (steps := round(epochs * timetable.epoch)) > MOST_STEPS:
            raise ConfigError(f"config.{key} is {epochs}, which is {steps:,} steps; there can be {MOST_STEPS:,}")
    return timetable


def saved_timetable(meta: dict[str, Any], dataset: Dataset) -> Timetable:
    """The timetable that a checkpoint was trained by; those of version 0.1.0 had one from the run's start."""
    own = meta["config"]
    origin = Origin(**meta["origin"]) if "origin" in meta else Origin()
    return Timetable(len(_train(dataset)), own["batch_size"], own["epochs"], own["eval_every"], origin)


def train_batches(
    config: config_dict.ConfigDict,
    dataset: Dataset,
    position: int,
    salt: int = 0,
    stop: Callable[[], bool] | None = None,
    size_of: Callable[[int], int] | None = None,
    views: Views | None = None,
) -> Feeder:
    """The training batches of a config from a position of the stream on, on the host; to be closed.

    For `position` see `Timetable.position`, for `stop` see `Feeder`, for `size_of` see `Stream`. `views` are those of
    `train_views`, if some of their images are in memory already.
    """
    return loader.train_batches(
        views or train_views(config, dataset),
        _order(config, dataset, salt),
        batch_size=config.batch_size,
        seed=config.seed,
        position=position,
        threads=loader_threads(config),
        workers=config.loader_workers,
        timeout=config.loader_timeout,
        stop=stop,
        size_of=size_of,
        places=_places(config),
    )


def train_views(config: config_dict.ConfigDict, dataset: Dataset) -> Views:
    """The training images as a run sees them before the devices change them."""
    return Views(
        _train(dataset),
        crop=config.augment.crop,
        **view_options(config),
        area=config.augment.crop_area,
        ratio=config.augment.crop_ratio,
        resize=config.augment.resize,
        cache_bytes=config.cache_megabytes * 2**20 // max(1, config.loader_workers),
    )


def batch_names(config: config_dict.ConfigDict, dataset: Dataset, position: int, salt: int) -> list[str]:
    """The names of the images of the global batch that begins at a position of the stream, row by row."""
    images, order = _train(dataset), _order(config, dataset, salt)
    return [images.name(order(position + int(place))) for place in _places(config)]


def _order(config: config_dict.ConfigDict, dataset: Dataset, salt: int) -> Order:
    """Which training image stands at each position of a run's stream; for `salt` see `make_order`."""
    labels, of_run = None, {"seed": config.seed, "salt": salt, "repeats": config.augment.repeats}
    if config.sampling:
        labels = labels_of(dataset)
        class_counts(labels, dataset.class_ids)  # refuses a class without images
    return make_order(config.sampling, labels, count=len(_train(dataset)), **of_run)


def _places(config: config_dict.ConfigDict) -> Int[np.ndarray, "B"]:
    """Which image of a batch, counted in the order of the stream, each of its rows holds."""
    return place_in_batch(np.arange(config.batch_size), config.batch_size)


def eval_views(
    config: config_dict.ConfigDict, dataset: Dataset, split: str = "val", view: dict[str, Any] | None = None
) -> Views:
    """The images of a split as evaluation sees them; kept from one evaluation to the next where they are few.

    `view` has other options than those of `view_options`.
    """
    return Views(
        getattr(dataset, split),
        crop="center",
        **(view or view_options(config)),
        cache_bytes=config.cache_megabytes * 2**20,
    )


def loader_threads(config: config_dict.ConfigDict) -> int:
    """Threads that decode in this process: one a core, unless the config gives a number."""
    return config.loader_threads or len(os.sched_getaffinity(0))


def _train(dataset: Dataset) -> Any:
    """The training images: `open_dataset` was asked for them."""
    assert dataset.train is not None
    return dataset.train
