"""What a library's config.json says, checked: it may be anybody's, and may not fit the weights."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from stce_jax.errors import CheckpointError, shown

LARGEST = 1_000_000  # of a whole number that is no count of bytes
PUBLISHED_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}  # by width: SoViT-400m, ViT-H, g and G


def whole(config: Mapping[str, Any], key: str, default: int) -> int:
    """A whole number, 1 to `LARGEST`; the default if the key is missing or null; else CheckpointError."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST:
        raise CheckpointError(f"its config.json says {key}={shown(value)}, which is no whole number from 1 on")
    return value


def number(config: Mapping[str, Any], key: str, default: float) -> float:
    """A finite number above 0; the default if the key is missing or null; else CheckpointError."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise CheckpointError(f"its config.json says {key}={shown(value)}, which is no number above 0")
    return float(value)


def require(config: Mapping[str, Any], key: str, accepted: Collection[Any], what: str) -> None:
    """Raises CheckpointError where a config says another value than those that the body can have."""
    if key in config and config[key] not in accepted:
        raise CheckpointError(f"its config.json says {key}={shown(config[key])}: {what}")


def section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A part of a config; {} if it is missing, null, or no object."""
    part = config.get(key)
    return part if isinstance(part, dict) else {}


def heads_of(config: Mapping[str, Any], width: int) -> int:
    """The heads of a ViT by the option's name here, else of published ones, most of 64 channels each."""
    return whole(config, "heads", PUBLISHED_HEADS.get(width, max(1, width // 64)))
