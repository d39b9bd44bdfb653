"""What can be refused of a config before anything is opened or changed: every option is checked by what uses it."""

from typing import Any

from ml_collections import config_dict

from stce_jax.data import catalog, holdout, loader, order, views
from stce_jax.data.loader import LONGEST_WAIT
from stce_jax.errors import ConfigError, check_range, check_text, check_whole, shown
from stce_jax.models.factory import LARGEST_SIDE
from stce_jax.paths import first_line
from stce_jax.recipe import augment, class_weights, optimizers
from stce_jax.recipe.schedules import check_restarts
from stce_jax.training import guard, patience, plan
from stce_jax.training.sizes import check_sizes
from stce_jax.workdir.loggers import check_loggers
from stce_jax.workdir.values import check_kinds

# Key -> smallest and largest value. What a run holds in memory or on disk has a bound that a slip of the finger passes.
WHOLE_NUMBERS = {
    "seed": (0, 2**32 - 1),
    "image_size": (1, LARGEST_SIDE),
    "log_every": (1, 2**31 - 1),
    "keep_checkpoints": (1, 10_000),
    "accumulate": (1, 2**20),
    "fsdp_devices": (1, 2**16),
}


def check_options(config: config_dict.ConfigDict) -> None:
    """Raises ConfigError for values that cannot work, before anything is opened or changed.

    The functions that use an option check it. `build_model` checks the model's.
    """
    check_kinds(config)
    for key, (minimum, maximum) in WHOLE_NUMBERS.items():
        check_whole(f"config.{key}", config[key], minimum, maximum)
    for key in ("epochs", "eval_every"):
        check_range(f"config.{key}", config[key], 0, 1_000_000, above=True)
    check_range("config.step_timeout", config.step_timeout, 1, LONGEST_WAIT)
    check_text("config.init_from", config.init_from)
    patience.check_options(patience=config.patience, patience_metric=config.patience_metric)
    check_loggers(config.loggers)
    plan.check_options(minutes=config.minutes, plan=config.plan)
    catalog.check_options(
        dataset=config.dataset,
        task=config.task,
        raw_short_side=config.raw_short_side,
        data_dir=config.data_dir,
        classes=config.classes,
    )
    holdout.check_options(holdout=config.holdout)
    order.check_options(sampling=config.sampling)
    class_weights.check_options(class_weights=config.class_weights)
    for key in ("class_weights", "sampling"):
        if config[key] and config.task != catalog.SINGLE_LABEL:
            raise ConfigError(
                f"config.{key} is {shown(config[key])}, which is for one class an image; leave it out, or set "
                f"config.task to {catalog.SINGLE_LABEL}"
            )
    loader.check_options(
        batch_size=config.batch_size,
        eval_batch_size=config.eval_batch_size,
        threads=config.loader_threads,
        workers=config.loader_workers,
        timeout=config.loader_timeout,
        cache_megabytes=config.cache_megabytes,
    )
    drawn = on_devices(config)
    statistics = {key: config.augment[key] for key in ("mean", "std")}
    augment.check_normalization(**statistics)
    check_range("config.augment.mixing_off_epochs", config.augment.mixing_off_epochs, 0, 1_000_000)
    others = {*drawn, *statistics, "mixing_off_epochs"}
    views.check_options(**{key: value for key, value in config.augment.items() if key not in others})
    augment.make_augment(1, mean=catalog.IMAGENET_MEAN, std=catalog.IMAGENET_STD, **drawn)
    optimizers.check_options(**config.optimizer)
    warmup_epochs = config.optimizer.warmup_epochs
    check_restarts(config.optimizer.restart_epochs, warmup_epochs=warmup_epochs, epochs=config.epochs)
    guard.check_options(**config.divergence)
    check_sizes(config.progressive_sizes, config.image_size)
    smallest = min([config.image_size, *config.progressive_sizes])
    if config.augment.shift > smallest:
        raise ConfigError(
            f"config.augment.shift is {config.augment.shift}, which is more than the image's {smallest} "
            "pixels; an image would be moved out of sight"
        )


def check_saved(config: config_dict.ConfigDict) -> None:
    """`check_options` of the config of a run that is there already, which may have been trained elsewhere.

    Raises:
      ConfigError: no run can have that config.
    """
    here = config.copy_and_resolve_references().unlock()
    here.augment.resize = "pillow"  # what training needs for another one may not be installed here
    try:
        check_options(here)
    except Exception as error:  # whatever values of other types lead to
        raise ConfigError(f"its config is none of a run: {first_line(error)}") from error


def on_devices(config: config_dict.ConfigDict) -> dict[str, Any]:
    """The options of `config.augment` that act on the devices; the others act while images are loaded."""
    return {name: config.augment[name] for name in augment.option_names()}
