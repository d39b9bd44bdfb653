"""What can be refused of a config before anything is opened or changed: every option is checked by what uses it."""

import math
from typing import Any

from ml_collections import config_dict

from stce_jax.data import catalog, loader, views
from stce_jax.errors import ConfigError, check_range
from stce_jax.paths import first_line
from stce_jax.recipe import augment, optimizers
from stce_jax.training import guard


def check_options(config: config_dict.ConfigDict) -> None:
    """Raises ConfigError for values that cannot work, before anything is opened or changed.

    The functions that use an option check it. `build_model` checks the model's.
    """
    check_range("config.seed", config.seed, 0, 2**32 - 1)
    check_range("config.image_size", config.image_size, 1)
    for key in ("log_every", "keep_checkpoints", "accumulate", "fsdp_devices", "step_timeout"):
        check_range(f"config.{key}", config[key], 1)
    for key in ("epochs", "eval_every"):
        if not 0 < config[key] < math.inf:
            raise ConfigError(f"config.{key} is {config[key]}; it must be above 0")
    catalog.check_options(dataset=config.dataset, raw_short_side=config.raw_short_side)
    loader.check_options(
        batch_size=config.batch_size,
        eval_batch_size=config.eval_batch_size,
        threads=config.loader_threads,
        workers=config.loader_workers,
        timeout=config.loader_timeout,
        cache_megabytes=config.cache_megabytes,
    )
    drawn = on_devices(config)
    views.check_options(**{key: value for key, value in config.augment.items() if key not in drawn})
    augment.make_augment(1, mean=catalog.IMAGENET_MEAN, std=catalog.IMAGENET_STD, **drawn)
    optimizers.check_options(**config.optimizer)
    guard.check_options(**config.divergence)


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
