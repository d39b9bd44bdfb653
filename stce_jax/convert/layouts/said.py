"""What a library's config.json says, checked: it may be anybody's, and may not fit the weights.

Where it says nothing of an option that no shape tells, the published size of the same shapes does.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

from stce_jax.errors import CheckpointError, shown
from stce_jax.models.bodies import BODIES

Config = Mapping[str, Any]
LARGEST = 1_000_000  # of a whole number that is no count of bytes
PUBLISHED_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}  # by width: SoViT-400m, ViT-H, g and G


def whole(config: Config, key: str, default: int) -> int:
    """A whole number, 1 to `LARGEST`; the default if the key is missing or null; else CheckpointError."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST:
        raise CheckpointError(f"its config.json says {key}={shown(value)}, which is no whole number from 1 on")
    return value


def number(config: Config, key: str, default: float) -> float:
    """A finite number above 0; the default if the key is missing or null; else CheckpointError."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise CheckpointError(f"its config.json says {key}={shown(value)}, which is no number above 0")
    return float(value)


def require(config: Config, key: str, accepted: Collection[Any], what: str) -> None:
    """Raises CheckpointError where a config says another value than the accepted ones; `what` is the reason."""
    if key in config and config[key] not in accepted:
        raise CheckpointError(f"its config.json says {key}={shown(config[key])}: {what}")


def section(config: Config, key: str) -> Config:
    """A part of a config; {} if it is missing, null, or no object."""
    part = config.get(key)
    return part if isinstance(part, dict) else {}


def heads_of(config: Config, width: int) -> int:
    """The heads of a ViT by the option's name here, else of published ones, most of 64 channels each."""
    return whole(config, "heads", PUBLISHED_HEADS.get(width, max(1, width // 64)))


def given(config: Config, option: str) -> Any:
    """What a config.json says of an option: by itself, or among timm's model_args; None if it says nothing."""
    return config.get(option, section(config, "model_args").get(option))


def published(body: str, shaped: Mapping[str, Any]) -> dict[str, Any] | None:
    """All options of the published size of a body that has these ones; None: no size has.

    Args:
      body: a name of `bodies.BODIES`.
      shaped: some options, lists as tuples.
    """
    module = BODIES[body]
    defaults = {field.name: field.default for field in dataclasses.fields(module)}
    for size in module.SIZES.values():
        options = defaults | size
        if all(options[name] == value for name, value in shaped.items()):
            return options
    return None


def unshaped(body: str, config: Config, shaped: Mapping[str, Any], *options: str) -> dict[str, Any]:
    """Options that show in no shape: what config.json says of them, else those of the published size.

    Args:
      body, shaped: see `published`.
      config: may have them by their names here.
      *options: their names.

    Raises:
      CheckpointError: neither tells one of them; it is named.
    """
    found, size = {}, published(body, shaped)
    for option in options:
        value = given(config, option)
        if value is None and size is None:
            known = ", ".join(f"{name}={shown(entry)}" for name, entry in shaped.items())
            raise CheckpointError(
                f"no shape tells the option {option}, and no published size of {body} has {known}; say it in a "
                f'config.json beside the weights: {{"{option}": ...}}'
            )
        found[option] = size[option] if value is None and size else value
    return found
