"""Opening a workdir: its config, model, parameters, class names and preprocessing."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from stce_jax.data import catalog, decode, loader
from stce_jax.data.views import Views, image_index
from stce_jax.errors import ConfigError, DataError
from stce_jax.models.factory import create_model
from stce_jax.paths import first_line, open_path, write_text
from stce_jax.processes import peers as processes
from stce_jax.recipe import augment
from stce_jax.recipe import optimizers as optim
from stce_jax.training.mesh import make_mesh
from stce_jax.training.state import abstract_variables
from stce_jax.training.timetable import Timetable
from stce_jax.workdir import config as configuration
from stce_jax.workdir.checkpoints import Checkpoints

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model and what is needed to use it.

    Attributes:
      config: the run's ConfigDict.
      model: `VisionTransformer`; `model.apply(variables, images, train=False)` gives logits [B, classes].
      variables: parameters and BatchNorm statistics.
      class_ids: the classes in the order of the logits: names of folders, WordNet ids.
      class_names: the same for people.
      preprocess: path, encoded bytes, or uint8 array [H, W, 3] -> float32 [S, S, 3], S = config.image_size.
      mean, std: of the training pixels scaled to 0..1, a number a channel.
      step: the checkpoint's.
      epoch: passes over the training images it had seen.
    """

    config: Any
    model: Any
    variables: Any
    class_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    preprocess: Callable
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
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
    read_config(workdir)  # says if it is none
    checkpoints = Checkpoints(checkpoints_in(workdir))
    alone_or_first = not processes.several() or processes.is_main()
    step = processes.share(checkpoints.find(checkpoint) if alone_or_first else None)
    meta = checkpoints.restore_meta(step)
    config = configuration.from_dict(meta["config"])  # its own: the workdir's may have been changed since
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
    return Run(
        config=config,
        model=model,
        variables=variables,
        class_ids=tuple(meta["class_ids"]),
        class_names=tuple(meta["class_names"]),
        preprocess=preprocess,
        mean=tuple(meta["mean"]),
        std=tuple(meta["std"]),
        step=step,
        epoch=meta["epoch"],
    )


def build_model(config, num_classes):
    """The model that a config names; options that are None stay the named model's."""
    options = {key: value for key, value in config.model.items() if key != "name" and value is not None}
    return create_model(config.model.name, num_classes=num_classes, image_size=config.image_size, **options)


def open_dataset(config, data_dir=""):
    """The dataset that a config names, in `data_dir` or where the config says."""
    return catalog.open_dataset(
        config.dataset, data_dir or config.data_dir, config.classes, raw_short_side=config.raw_short_side
    )


def build_augment(config, dataset):
    """The augmentation that the train step runs on the devices, see `augment.make_augment`."""
    options = {name: config.augment[name] for name in augment.option_names()}
    return augment.make_augment(len(dataset.class_names), mean=dataset.mean, std=dataset.std, **options)


def build_timetable(config, dataset):
    """The run's length in steps, and when it is evaluated."""
    images = len(dataset.train)
    epoch = images / config.batch_size
    total = round(config.epochs * epoch)
    if total < 1:
        raise ConfigError(f"{config.epochs} epochs of {images} images are less than one batch of {config.batch_size}")
    return Timetable(epoch, total, max(1.0, config.eval_every * epoch))


def build_optimizer(config, timetable):
    """(schedule, optimizer) of a config."""
    options = config.optimizer
    schedule = optim.make_schedule(
        peak=optim.peak_learning_rate(options.learning_rate, options.learning_rate_scaling, config.batch_size),
        warmup_from=options.warmup_learning_rate,
        final=options.final_learning_rate,
        warmup_steps=round(options.warmup_epochs * timetable.epoch),
        total_steps=timetable.total,
    )
    optimizer = optim.make_optimizer(
        schedule,
        weight_decay=options.weight_decay,
        beta1=options.beta1,
        beta2=options.beta2,
        epsilon=options.epsilon,
        clip_norm=options.clip_norm,
    )
    return schedule, optimizer


def train_batches(config, dataset, start_step, salt=0, stop=None):
    """The training batches of a config from a step on, on the host; to be closed. For `stop` see `Feeder`."""
    views = Views(
        dataset.train,
        size=config.image_size,
        crop=config.augment.crop,
        fraction=config.augment.eval_crop_fraction,
        area=config.augment.crop_area,
        ratio=config.augment.crop_ratio,
        resize=config.augment.resize,
        cache_bytes=config.cache_megabytes * 2**20 // max(1, config.loader_workers),
    )
    return loader.train_batches(
        views,
        batch_size=config.batch_size,
        repeats=config.augment.repeats,
        seed=config.seed,
        salt=salt,
        start_step=start_step,
        threads=loader_threads(config),
        workers=config.loader_workers,
        timeout=config.loader_timeout,
        stop=stop,
    )


def batch_names(config, dataset, step, salt):
    """The names of the images of a global batch, step counted from 0."""
    first, count = step * config.batch_size, len(dataset.train)
    order = {"count": count, "seed": config.seed, "salt": salt, "repeats": config.augment.repeats}
    positions = range(first, first + config.batch_size)
    return [dataset.train.name(image_index(position, **order)) for position in positions]


def eval_views(config, dataset, split="val"):
    """The images of a split as evaluation sees them; kept from one evaluation to the next where they are few."""
    return Views(
        getattr(dataset, split),
        size=config.image_size,
        crop="center",
        fraction=config.augment.eval_crop_fraction,
        cache_bytes=config.cache_megabytes * 2**20,
    )


def loader_threads(config):
    """Threads that decode in this process: as many as it has cores, unless the config says otherwise."""
    return config.loader_threads or len(os.sched_getaffinity(0))


def checkpoint_meta(config, dataset):
    """What a checkpoint says besides arrays and its epoch, so that it can be used by itself."""
    return {
        "config": config.to_dict(),
        "class_ids": list(dataset.class_ids),
        "class_names": list(dataset.class_names),
        "fingerprint": dataset.fingerprint,
        "mean": list(dataset.mean),
        "std": list(dataset.std),
    }


def check_fingerprint(meta, dataset):
    """Refuses to go on with other images than a checkpoint was trained on.

    Raises:
      DataError: the fingerprints differ.
    """
    if meta["fingerprint"] != dataset.fingerprint:
        raise DataError(
            f"the images are not those the run was trained on: their fingerprint is {dataset.fingerprint[:12]}, "
            f"the checkpoint's is {meta['fingerprint'][:12]}; give the --data_dir it began with, or another --workdir"
        )


def checkpoints_in(workdir):
    """Where a workdir's checkpoints are."""
    return open_path(workdir) / CHECKPOINTS


def has_checkpoint(workdir):
    """Whether a run has got so far that it would be resumed."""
    return bool(Checkpoints(checkpoints_in(workdir)).steps())


def read_config(workdir):
    """The config of a workdir."""
    path = open_path(workdir) / CONFIG_FILE
    try:
        return configuration.from_json(path.read_text())
    except OSError as error:
        raise ConfigError(f"{workdir} is no workdir of a run: cannot read {path.name}: {first_line(error)}") from error


def check_config(workdir, config, *, allow_change=False):
    """Refuses a workdir that belongs to another config; if `allow_change`, only says what differs.

    Raises:
      ConfigError: it does, or its config cannot be read.
    """
    if not (open_path(workdir) / CONFIG_FILE).exists():
        return
    changed = "; ".join(configuration.differences(read_config(workdir), config))
    if changed and not allow_change:
        raise ConfigError(
            f"{workdir} belongs to another config ({changed}); use another workdir, that config, or "
            "--allow_config_change to go on with this one"
        )
    if changed:
        print(f"going on with another config: {changed}", flush=True)


def write_config(workdir, config):
    """Makes a workdir a config's; raises ConfigError if it cannot be written."""
    try:
        write_text(open_path(workdir) / CONFIG_FILE, configuration.to_json(config))
    except OSError as error:
        raise ConfigError(f"cannot write to workdir {workdir}: {first_line(error)}; give another --workdir") from error


def _preprocess(image, *, size, fraction, mean, std):
    return np.asarray(augment.normalize(decode.read_view(image, size=size, fraction=fraction), mean=mean, std=std))
