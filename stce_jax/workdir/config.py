"""Configs: finding and running a config file, command-line overrides, what differs, and JSON.

Keys and types are checked here; each value is checked by the function that uses it, see `training.assemble`.
"""

import contextlib
import importlib.util
import inspect
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from stce_jax import configs
from stce_jax.configs import default
from stce_jax.configs._flat import FLAT_KEYS
from stce_jax.errors import ConfigError, PreemptedError
from stce_jax.paths import parse_json
from stce_jax.platform import terminal
from stce_jax.workdir import migration, parts
from stce_jax.workdir.spelling import meant
from stce_jax.workdir.values import check_kinds, leaves

SHIPPED = Path(str(configs.__file__)).parent
# Keys that say where and how fast a run computes and where its numbers go, never what: they may change between a run
# and its resumption, and between the processes of a run.
PLACE_KEYS = (
    "data_dir",
    "loader_threads",
    "loader_workers",
    "loader_timeout",
    "cache_megabytes",
    "fsdp_devices",
    "step_timeout",
    "keep_checkpoints",
    "loggers",
)


def load_config(name: str, overrides: Sequence[str] = ()) -> config_dict.ConfigDict:
    """Runs a config file and applies overrides.

    Args:
      name: a shipped config ("digits") or a path ("my/config.py"), optionally with an argument for its get_config
        after a colon ("digits:patch").
      overrides: command-line words such as "--config.optimizer.learning_rate=3e-4". "--config.model.dtype=None" takes a
        value away that the file gives. The flat keys of version 0.1 ("--config.model.width=96") work, too.

    Returns:
      A locked ConfigDict with exactly the keys of `stce_jax.configs.default`, and those of modules that the file has
      registered. Types are checked; values are not, see `training.assemble.load_config`.

    Raises:
      ConfigError: no such file, an error in it, a missing or unknown key, or a wrong type.
    """
    config = run_config_file(name)
    with _refusing(f"what get_config() of config {name} returns"):  # references are followed, anything may come out
        config = _with_sections(config)
        check_kinds(config)
        return _overridden(config, name, overrides)


def known_keys() -> list[str]:
    """Every key of the package's own configs, such as "optimizer.learning_rate"."""
    return list(flatten(default.get_config()))


def override(config: config_dict.ConfigDict, overrides: Sequence[str]) -> config_dict.ConfigDict:
    """A config of `load_config`, which it changes, with overrides; see there."""
    with config.unlocked():
        return _overridden(config, "of the source", overrides)


def _overridden(config: config_dict.ConfigDict, name: str, overrides: Sequence[str]) -> config_dict.ConfigDict:
    """Checks a config's keys and applies overrides, see `load_config`."""
    expected, found = flatten(default.get_config()), flatten(config)
    for key in expected:
        if key not in found:
            raise ConfigError(f"config {name} lacks the key {key!r}; start it from default.get_config()")
    added = _registered_prefixes(config.model)
    for key in found:
        if key not in expected and not key.startswith(added):
            words = key.split(".")
            if len(words) > 3 and words[1] in parts.TABLES and not parts.is_registered(words[1], words[2]):
                table = parts.TABLES[words[1]][1]
                raise ConfigError(
                    f"config {name} has options of the {words[1]} {words[2]!r}, which is not registered; "
                    f"add it to {table} before: {table}[{words[2]!r}] = ..."
                )
            raise ConfigError(f"config {name} sets an unknown key {key!r}{_nearest(key, expected)}")
    words = migration.new_words(overrides, config.model)
    unset = [word for word in words if _unsets(word, expected)]
    config.update_from_flattened_dict({migration.flag_key(word): None for word in unset})
    return _override(config.lock(), [word for word in words if word not in unset], list(found))


def run_config_file(name: str) -> config_dict.ConfigDict:
    """What a config file returns, unchecked; modules that it registers are then known to this process.

    Args:
      name: see `load_config`.

    Raises:
      ConfigError: no such file, an error in it, or it returns no ConfigDict.
    """
    path_name, _, argument = str(name).partition(":")
    path = Path(os.path.expanduser(path_name))
    shipped = SHIPPED / f"{path_name}.py"
    if not path_name.endswith(".py") and os.path.isfile(shipped):
        path = shipped
    if path.suffix != ".py" or not os.path.isfile(path):  # False, too, of a name that the file system does not take
        names = ", ".join(sorted(file.stem for file in SHIPPED.glob("[!_]*.py")))
        raise ConfigError(f"there is no config {path_name!r}; give a .py file, or one of {names}")
    # As a member of stce_jax.configs, so that `from . import default` means the shipped defaults in any file.
    words = path.relative_to(SHIPPED).parts[:-1] if path == shipped else ()  # of tables/table6.py: tables
    spec = importlib.util.spec_from_file_location(".".join((configs.__name__, *words, path.stem)), path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    with _refusing(f"config {path}"):
        with _importable(path.parent):
            spec.loader.exec_module(module)
        get_config = module.get_config
        if argument and not inspect.signature(get_config).parameters:
            raise ConfigError(f"config {path_name} takes no argument; leave out {':' + argument!r}")
        known = getattr(module, "VARIANTS", ())
        if argument and known and argument not in known:
            raise ConfigError(f"config {path_name} has no variant {argument!r}; it has {', '.join(known)}")
        config = get_config(argument) if argument else get_config()
    if not isinstance(config, config_dict.ConfigDict) or isinstance(config, config_dict.FrozenConfigDict):
        raise ConfigError(f"get_config() in {path} returns {type(config).__name__}; it must return a ConfigDict")
    return config


@contextlib.contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Turns whatever a config file raises, which is anybody's code, into one ConfigError; it cannot end the process."""
    try:
        yield
    except (ConfigError, PreemptedError, KeyboardInterrupt):
        raise
    except SystemExit as error:
        raise ConfigError(f"{what} calls exit(); it must return a config and nothing else") from error
    except BaseException as error:
        reason = terminal.one_line(error)
        if unknown := re.match(r"""["']*Key "(\w+)" does not exist""", reason):  # of ml_collections, much longer
            key = unknown[1]
            raise ConfigError(f"{what} sets an unknown key {key!r}{_nearest(key, known_keys())}") from error
        raise ConfigError(f"{what} fails with {type(error).__name__}: {reason}") from error


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """While open, modules that lie in a folder can be imported, as those beside a script can."""
    sys.path.insert(0, str(folder.absolute()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.absolute()))


def differences(old: config_dict.ConfigDict, new: config_dict.ConfigDict) -> list[str]:
    """What differs between two configs: lines such as "seed: 0 -> 1".

    `PLACE_KEYS` are left out, and sections of modules that neither of them uses.
    """
    before, after = flatten(old), flatten(new)
    names = [parts.chosen(config.model) for config in (old, new)]
    keys = [key for key in {**before, **after} if key not in PLACE_KEYS and any(parts.reads(key, n) for n in names)]
    pairs = {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}
    # An empty text is shown as one, or the line would end in the air.
    return [f"{key}: {' -> '.join(str(value) or repr(value) for value in pair)}" for key, pair in pairs.items()]


def of_result(config: config_dict.ConfigDict) -> dict[str, Any]:
    """{"model.name": ..., ...} of the keys that a result can depend on: without `PLACE_KEYS` and unused options."""
    names = parts.chosen(config.model)
    flat = flatten(config)
    return {key: flat[key] for key in flat if key not in PLACE_KEYS and parts.reads(key, names)}


def to_dict(config: config_dict.ConfigDict, *, places: bool = True) -> dict[str, Any]:
    """The config as nested dicts that say their form, for JSON. Without `places` it lacks the `PLACE_KEYS`."""
    values = {key: value for key, value in config.to_dict().items() if places or key not in PLACE_KEYS}
    return {"form": migration.FORM, **values}


def to_json(config: config_dict.ConfigDict, *, places: bool = True) -> str:
    """`to_dict` as JSON text; tuples become lists."""
    return json.dumps(to_dict(config, places=places), indent=2) + "\n"


def from_json(text: str) -> config_dict.ConfigDict:
    """Reads what `to_json` wrote, in this version or an earlier one.

    Raises:
      ConfigError: no JSON, a newer form, other keys than this version has, or a module that is not registered.
    """
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ConfigError(f"config.json is damaged: {terminal.one_line(error)}") from error
    return from_dict(values)


def from_dict(values: Any) -> config_dict.ConfigDict:
    """A config of `to_dict`, lists where a config has tuples; raises ConfigError as `from_json` does."""
    config = default.get_config().unlock()
    if not isinstance(values, dict):
        raise ConfigError("config.json is damaged: it holds no object")
    try:
        config.update(migration.upgrade(_tuples(values)))
        parts.check_modules(config)
    except ConfigError:
        raise
    except Exception as error:  # whatever a part of another type leads to, somewhere in ml_collections
        raise ConfigError(f"config.json is damaged: {terminal.one_line(error) or type(error).__name__}") from error
    added = _registered_prefixes(config.model)
    try:
        keys = list(flatten(config))
    except ConfigError as error:  # nested, but less deeply than what Python's stack has room for
        raise ConfigError(f"config.json is damaged: {error}") from error
    if [key for key in keys if not key.startswith(added)] != list(flatten(default.get_config())):
        raise ConfigError("config.json has other keys than this version of stce_jax; use the version that wrote it")
    return config.lock()


def flatten(config: config_dict.ConfigDict) -> dict[str, Any]:
    """{"model.name": ..., ...} of a ConfigDict, in its order."""
    return dict(leaves(config))


def _with_sections(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """A config whose `model` is a ConfigDict of flat keys, put together without `default`, with sections instead."""
    flat = config.model if "model" in config else None
    if not isinstance(flat, config_dict.ConfigDict) or not FLAT_KEYS.keys() & set(flat):
        return config
    model, changed = default.get_config().model, config.copy_and_resolve_references().unlock()
    try:
        model.update(flat.to_dict())
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"config.model cannot be read: {terminal.one_line(error)}") from error
    del changed.model
    changed.model = model
    return changed


def _registered_prefixes(model: Mapping[str, Any]) -> tuple[str, ...]:
    """The prefixes, such as "model.embedding.toy.", of the options of modules that a config file has registered."""
    sections = parts.added_sections(model)
    return tuple(f"model.{part}.{name}." for part, name in sections if parts.is_registered(part, name))


def _unsets(word: str, defaults: Mapping[str, Any]) -> bool:
    """Whether an override is `--config.KEY=None`, for a key that has no value unless it is given one."""
    return word.endswith("=None") and defaults.get(migration.flag_key(word), word) is None


def _override(config: config_dict.ConfigDict, overrides: list[str], keys: list[str]) -> config_dict.ConfigDict:
    if not overrides:
        return config
    argv = ["stce", *overrides]
    for word in overrides:
        if word.lstrip("-").partition("=")[0] in ("flagfile", "undefok") and word.startswith("-"):  # absl's own
            raise ConfigError(f"unknown argument {word!r}; overrides look like --config.seed=1")
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        rest = values(argv)[1:]
    except (AttributeError, KeyError) as error:
        unknown = next((word for word in overrides if migration.flag_key(word) not in keys), overrides[0])
        raise ConfigError(f"unknown config key in {unknown!r}{_nearest(migration.flag_key(unknown), keys)}") from error
    except (flags.Error, TypeError, ValueError, ArithmeticError, RecursionError, MemoryError, SyntaxError) as error:
        raise ConfigError(f"bad value in {' '.join(overrides)!r}: {terminal.one_line(error)}") from error
    if rest:
        raise ConfigError(f"unknown argument {rest[0]!r}; overrides look like --config.seed=1")
    return values.config


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _nearest(key: str, keys: Iterable[str]) -> str:
    """A suggestion, see `spelling.meant`."""
    near = meant(key, keys)
    return f"; did you mean {near!r}?" if near else "; `stce config` lists every key"
