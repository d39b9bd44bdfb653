"""Parameters by their paths: which of them a run trains, and how fast each of them learns."""

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import traverse_util

from stce_jax.errors import ConfigError, shown

Path = tuple[str, ...]  # names from the root to a leaf
Frozen = Callable[[Path], bool]
Rates = Callable[[Path, tuple[int, ...]], Any]  # (path, shape) -> factor, one number or an array that fits the shape
MOST_PATTERNS, LONGEST = 100, 1000
_PATTERN = re.compile(r"[A-Za-z0-9_*?]+(/[A-Za-z0-9_*?]+)*")


def is_frozen(patterns: Sequence[str]) -> Frozen:
    """Path -> whether a pattern names it, or a module above it.

    The words of a pattern, between slashes, are compared with the names of a path one by one from the root. `*` and `?`
    stand for letters of a name; a number behind a name may be left out: "blocks" is "blocks_0", "blocks_1" and so on.
    """
    words = [pattern.split("/") for pattern in _patterns(patterns)]

    def matches(path: Path) -> bool:
        return any(len(own) <= len(path) and all(map(_is_named, path, own)) for own in words)

    return matches


def check_patterns(patterns: Any) -> None:
    """Raises ConfigError unless `config.optimizer.freeze` is a tuple of patterns of `is_frozen`."""
    entries: list[Any] = list(patterns) if isinstance(patterns, tuple | list) else [None]
    texts = all(isinstance(entry, str) and len(entry) <= LONGEST for entry in entries)
    if not texts or len(entries) > MOST_PATTERNS or not all(map(_PATTERN.fullmatch, _patterns(entries))):
        raise ConfigError(
            f"config.optimizer.freeze is {shown(patterns)}; it must be a tuple of at most {MOST_PATTERNS} names of "
            "parts such as 'embedding', 'blocks' or 'blocks_0/attention', with * for any letters of a name"
        )


def check_frozen(patterns: Sequence[str], paths: Iterable[Path]) -> None:
    """Raises ConfigError if one of the patterns names none of a model's parameters, or if they leave none to train."""
    paths = list(paths)
    for pattern in _patterns(patterns):
        if not any(map(is_frozen([pattern]), paths)):
            parts = ", ".join(sorted({re.sub(r"_\d+$", "", path[0]) for path in paths}))
            raise ConfigError(
                f"config.optimizer.freeze names {shown(pattern)}, and the model has no such part; it has {parts}"
            )
    if all(map(is_frozen(patterns), paths)):
        raise ConfigError(
            f"config.optimizer.freeze is {shown(tuple(patterns))}, which leaves nothing to train; leave the head out"
        )


def split(tree: Any, frozen: Frozen) -> tuple[Any, Any]:
    """(what is trained, what is frozen) of nested dicts, each without the other's entries."""
    flat = traverse_util.flatten_dict(tree)
    parts = ({path: leaf for path, leaf in flat.items() if frozen(path) is kind} for kind in (False, True))
    trained, rest = map(traverse_util.unflatten_dict, parts)
    return trained, rest


def merge(trained: Any, rest: Any) -> Any:
    """What `split` has split."""
    return traverse_util.unflatten_dict({**traverse_util.flatten_dict(trained), **traverse_util.flatten_dict(rest)})


def scale_by_rates(rates: Rates) -> optax.GradientTransformation:
    """Multiplies each parameter's update, and so its learning rate and its decoupled weight decay. It has no state."""

    def update(updates: Any, params: Any = None) -> Any:
        del params
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf * np.asarray(rates(tuple(key.key for key in path), leaf.shape), np.float32), updates
        )

    return optax.stateless(update)


def layer_rates(decay: float, layer_of: Callable[[Path, tuple[int, ...]], Any], layers: int) -> Rates:
    """decay ** (number of layers above a parameter's own): BEiT's and MAE's rule, 1 for the head.

    Sources: Bao et al. 2022, "BEiT", arXiv 2106.08254; He et al. 2022, "Masked autoencoders", arXiv 2111.06377.

    Args:
      decay: 0 < decay <= 1.
      layer_of: (path, shape) -> layer, 0 for the embedding to `layers` for the head; an array for stacked blocks.
      layers: number of the last layer, the head's.
    """
    return lambda path, shape: decay ** (layers - np.asarray(layer_of(path, shape), np.float64))


def _patterns(entries: Sequence[str]) -> list[str]:
    """Each of the patterns: the command line makes one entry of all that commas separate."""
    return [pattern for entry in entries for pattern in entry.split(",")]


def _is_named(name: str, word: str) -> bool:
    return fnmatch.fnmatchcase(name, word) or fnmatch.fnmatchcase(re.sub(r"_\d+$", "", name), word)
