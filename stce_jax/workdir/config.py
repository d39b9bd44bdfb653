"""Configs: finding and running a config file, command-line overrides, checking, and JSON."""

import difflib
import importlib.util
import inspect
import json
from pathlib import Path

from absl import flags
from ml_collections import config_dict, config_flags

from stce_jax import configs
from stce_jax.configs import default
from stce_jax.errors import ConfigError

SHIPPED = Path(configs.__file__).parent
# Keys that say where and how fast a run computes, never what: they may change between a run and its resumption, and
# between the processes of a run.
PLACE_KEYS = (
    "data_dir",
    "loader_threads",
    "loader_workers",
    "loader_timeout",
    "cache_megabytes",
    "fsdp_devices",
    "step_timeout",
    "keep_checkpoints",
)
CHOICES = {
    "dataset": ("digits", "folder", "imagenet100", "imagenet2012"),
    "optimizer.learning_rate_scaling": ("none", "linear"),
    "augment.crop": ("random_resized", "center"),
    "augment.resize": ("pillow", "simd"),
}
# (least, most) of what must lie in a range; None: no bound.
RANGES = {
    "seed": (0, 2**32 - 1),
    "raw_short_side": (0, None),
    "image_size": (1, None),
    "batch_size": (1, None),
    "eval_batch_size": (1, None),
    "log_every": (1, None),
    "keep_checkpoints": (1, None),
    "accumulate": (1, None),
    "fsdp_devices": (1, None),
    "step_timeout": (1, None),
    "loader_threads": (1, None),
    "loader_workers": (0, None),
    "loader_timeout": (1, None),
    "cache_megabytes": (0, None),
    "optimizer.learning_rate": (0, None),
    "optimizer.warmup_epochs": (0, None),
    "optimizer.weight_decay": (0, None),
    "optimizer.clip_norm": (0, None),
    "optimizer.ema_decay": (0, 1),
    "divergence.max_skipped": (1, None),
    "divergence.loss_spike": (0, None),
    "divergence.max_rollbacks": (0, None),
    "augment.eval_crop_fraction": (0.01, 1),
    "augment.repeats": (1, None),
    "augment.flip": (0, 1),
    "augment.shift": (0, None),
    "augment.color_jitter": (0, 1),
    "augment.erase": (0, 1),
    "augment.mixup": (0, None),
    "augment.cutmix": (0, None),
    "augment.switch_probability": (0, 1),
    "augment.label_smoothing": (0, 1),
}
# Most of what is a pair (least, most) of numbers above 0.
PAIRS = {
    "augment.crop_area": 1.0,
    "augment.crop_ratio": float("inf"),
    "augment.erase_area": 1.0,
    "augment.erase_ratio": float("inf"),
}


def load_config(name, overrides=()):
    """Runs a config file and applies overrides.

    Args:
      name: a shipped config ("digits") or a path ("my/config.py"), optionally with an argument for its get_config
        after a colon ("digits:patch").
      overrides: command-line words such as "--config.optimizer.learning_rate=3e-4"; "--config.model.cell=None" takes
        a value away that the file gives.

    Returns:
      A locked ConfigDict with exactly the keys of `stce_jax.configs.default`, checked.

    Raises:
      ConfigError: no such file, an error in it, a missing or unknown key, a wrong type, a value out of range.
    """
    config = _run_config_file(name)
    expected, found = _flatten(default.get_config()), _flatten(config)
    for key in found:
        if key not in expected:
            raise ConfigError(f"config {name} sets an unknown key {key!r}{_nearest(key, expected)}")
    for key in expected:
        if key not in found:
            raise ConfigError(f"config {name} lacks the key {key!r}; start it from default.get_config()")
    unset = [word for word in overrides if _unsets(word, expected)]
    config.update_from_flattened_dict({_flag_key(word): None for word in unset})
    config = _override(config.lock(), [word for word in overrides if word not in unset], list(expected))
    _check(config)
    return config


def _unsets(word, defaults):
    """Whether an override is `--config.KEY=None`, for a key that has no value unless it is given one."""
    return word.endswith("=None") and defaults.get(_flag_key(word), word) is None


def _run_config_file(name):
    path_name, _, argument = str(name).partition(":")
    path = Path(path_name).expanduser()
    shipped = SHIPPED / f"{path_name}.py"
    if not path_name.endswith(".py") and shipped.is_file():
        path = shipped
    if path.suffix != ".py" or not path.is_file():
        names = ", ".join(sorted(file.stem for file in SHIPPED.glob("[!_]*.py")))
        raise ConfigError(f"there is no config {path_name!r}; give a .py file, or one of {names}")
    # As a member of stce_jax.configs, so that `from . import default` means the shipped defaults in any file.
    words = path.relative_to(SHIPPED).parts[:-1] if path == shipped else ()  # of tables/table6.py: tables
    spec = importlib.util.spec_from_file_location(".".join((configs.__name__, *words, path.stem)), path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        get_config = module.get_config
        if argument and not inspect.signature(get_config).parameters:
            raise ConfigError(f"config {path_name} takes no argument; leave out {':' + argument!r}")
        known = getattr(module, "VARIANTS", ())
        if argument and known and argument not in known:
            raise ConfigError(f"config {path_name} has no variant {argument!r}; it has {', '.join(known)}")
        config = get_config(argument) if argument else get_config()
    except ConfigError:
        raise
    except Exception as error:  # a config file is anybody's code
        raise ConfigError(f"config {path} fails with {type(error).__name__}: {_one_line(error)}") from error
    if not isinstance(config, config_dict.ConfigDict):
        raise ConfigError(f"get_config() in {path} returns {type(config).__name__}; it must return a ConfigDict")
    return config


def _override(config, overrides, keys):
    argv = ["stce", *overrides]
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        rest = values(argv)[1:]
    except (AttributeError, KeyError) as error:
        unknown = next((word for word in overrides if _flag_key(word) not in keys), overrides[0])
        raise ConfigError(f"unknown config key in {unknown!r}{_nearest(_flag_key(unknown), keys)}") from error
    except (flags.Error, TypeError, ValueError) as error:
        raise ConfigError(f"bad value in {' '.join(overrides)!r}: {_one_line(error)}") from error
    if rest:
        raise ConfigError(f"unknown argument {rest[0]!r}; overrides look like --config.seed=1")
    return values.config


def _flag_key(word):
    return word.lstrip("-").partition("=")[0].partition(".")[2]


def _check(config):
    values = _flatten(config)
    for key, choices in CHOICES.items():
        if values[key] not in choices:
            raise ConfigError(f"config.{key} is {values[key]!r}; it must be one of {', '.join(choices)}")
    for key, (least, most) in RANGES.items():
        if values[key] is not None and not (least <= values[key] and (most is None or values[key] <= most)):
            bounds = f"at least {least}" if most is None else f"between {least} and {most}"
            raise ConfigError(f"config.{key} is {values[key]}; it must be {bounds}")
    for key in ("epochs", "eval_every"):
        if not 0 < values[key] < float("inf"):
            raise ConfigError(f"config.{key} is {values[key]}; it must be above 0")
    for key, most in PAIRS.items():
        pair = values[key]
        numbers = len(pair) == 2 and all(isinstance(number, int | float) for number in pair)
        if not (numbers and 0 < pair[0] <= pair[1] <= most):
            raise ConfigError(f"config.{key} is {pair}; it must be two numbers above 0, the smaller first")


def differences(old, new):
    """What differs between two configs, but for `PLACE_KEYS`: lines such as "seed: 0 -> 1"."""
    old, new = _flatten(old), _flatten(new)
    keys = [key for key in {**old, **new} if key not in PLACE_KEYS and old.get(key) != new.get(key)]
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys]


def to_json(config, *, places=True):
    """The config as JSON text; tuples become lists. Without `places` it lacks the `PLACE_KEYS`."""
    values = config.to_dict()
    if not places:
        values = {key: value for key, value in values.items() if key not in PLACE_KEYS}
    return json.dumps(values, indent=2) + "\n"


def from_json(text):
    """Reads what `to_json` wrote.

    Raises:
      ConfigError: no JSON, or not exactly the keys of this version.
    """
    try:
        return from_dict(json.loads(text))
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"config.json is damaged: {_one_line(error)}") from error


def from_dict(values):
    """A config of nested dicts, lists where a config has tuples; raises ConfigError as `from_json` does."""
    try:
        config = default.get_config().unlock()
        config.update(_tuples(values))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ConfigError(f"config.json is damaged: {_one_line(error)}") from error
    if list(_flatten(config)) != list(_flatten(default.get_config())):
        raise ConfigError("config.json has other keys than this version of stce_jax; use the version that wrote it")
    return config.lock()


def _tuples(value):
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _flatten(config, prefix=""):
    """{"model.name": ..., ...} of a ConfigDict, in its order."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, config_dict.ConfigDict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _nearest(key, keys):
    last_words = {known.rpartition(".")[2]: known for known in keys}
    near = difflib.get_close_matches(key, keys, 1) or [
        last_words[word] for word in difflib.get_close_matches(key.rpartition(".")[2], last_words, 1)
    ]
    return f"; did you mean {near[0]!r}?" if near else "; configs/default.py lists every key"


def _one_line(error):
    return " ".join(str(error).split())
