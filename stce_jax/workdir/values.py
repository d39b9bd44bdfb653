"""The kinds of values that a config may hold: those of `configs/default.py`. Ranges are checked by what uses a value.

A config file is anybody's code, and may put anything under a key, whatever `ml_collections` does against it.
"""

import functools
import math
import operator
from collections.abc import Iterator
from typing import Any

from ml_collections import config_dict

from stce_jax.configs import default
from stce_jax.errors import ConfigError, shown

DEEPEST = 8  # sections in one another; of the package's own there are three
WORDS = {bool: "True or False", int: "a whole number", float: "a finite number", str: "text", tuple: "a tuple"}


def check_kinds(config: config_dict.ConfigDict) -> None:
    """Refuses values of another kind than the default's, and of options of registered modules what JSON cannot hold.

    Raises:
      ConfigError: names the key, the value and the kind that it must have. Numbers are finite, whole ones fit in 64
        bits, and tuples hold numbers, text and tuples.
    """
    for key, value in leaves(config):
        kind, optional = _kinds().get(key, (None, True))
        if (value is None and optional) or (_is_plain(value) and (kind is None or _is_of(kind, value))):
            continue
        expected = WORDS[kind] if kind else "a finite number, text or a tuple of them"
        raise ConfigError(f"config.{key} is {shown(value)}; it must be {expected}{' or None' * optional}")


def leaves(config: config_dict.ConfigDict, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """(key, value) of a config with its sections, such as ("model.name", "vit_s_stce"), in its order.

    Raises:
      ConfigError: sections are nested without end.
    """
    if depth > DEEPEST:
        raise ConfigError(f"config.{shown(prefix)} is a section of a section and so on; is it one of its own sections?")
    for key, value in config.items():
        if isinstance(value, config_dict.ConfigDict):
            yield from leaves(value, f"{prefix}{key}.", depth + 1)
        else:
            yield f"{prefix}{key}", value


@functools.cache
def _kinds() -> dict[str, tuple[type, bool]]:
    """{key: (its type, whether it may be None)} of the package's own keys."""
    defaults = default.get_config()
    kinds = {}
    for key, value in leaves(defaults):
        section, _, last = key.rpartition(".")
        owner = functools.reduce(operator.getitem, filter(None, section.split(".")), defaults)
        kinds[key] = owner.get_type(last), value is None
    return kinds


def _is_of(kind: type, value: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is tuple:
        return isinstance(value, tuple | list)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _is_plain(value: Any, depth: int = 0) -> bool:
    if isinstance(value, tuple | list):
        plain = all(entry is not None and _is_plain(entry, depth + 1) for entry in value)
        return depth < DEEPEST and len(value) <= 1000 and plain
    if isinstance(value, int):
        return abs(value) < 2**63
    return isinstance(value, str) or (isinstance(value, float) and math.isfinite(value))
