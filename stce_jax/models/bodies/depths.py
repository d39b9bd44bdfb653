"""How deep in a body each parameter lies: 0 for the embedding, one more with each block, the last for norm and head.

Sources: BEiT's and MAE's rule for a vision transformer; SimMIM's (Xie et al. 2022, arXiv 2111.09886) for Swin, where
what lies between two stages belongs to the block before it.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from stce_jax.errors import ConfigError
from stce_jax.models.bodies.stages import stage_ranges

# Of modules that a body has several of, a number behind each name: those that stand behind the stage of their number.
# Others, such as norms of stages and tables of positions, stand before its blocks.
BEHIND = ("downsampling", "halving", "merging")
_LAYER = re.compile(r"layers_(\d+)")
LayerOf = Callable[[tuple[str, ...], tuple[int, ...]], Any]


def layers_of(body: Any, paths: Iterable[tuple[str, ...]]) -> tuple[LayerOf, int]:
    """(function (path, shape) -> layer, number of the last layer) of a body's parameters.

    Layers are: 0, the embedding with tokens and positions; i + 1, the i-th block, counted through all stages; the last,
    what comes behind all blocks. A stack of blocks, under "blocks", has a layer for each entry of its first axis.

    Args:
      body: a body; where it has stages, `depths` or `kinds` say how many blocks each has.
      paths: of all of its parameters.

    Raises:
      ConfigError: it has no blocks.
    """
    paths = list(paths)
    stages = stage_ranges(stage_depths(body, paths))
    nested = any(len(path) > 1 and path[0].startswith("blocks_") and _LAYER.fullmatch(path[1]) for path in paths)
    last = (stages[-1].stop if stages else 0) + 1
    if last == 1:
        raise ConfigError(f"layer_decay goes by blocks, and {type(body).__name__} has none; give layer_decay=1")

    def layer_of(path: tuple[str, ...], shape: tuple[int, ...]) -> Any:
        name, _, number = path[0].rpartition("_")
        if path[0] == "blocks":
            return np.arange(1, last).reshape(-1, *[1] * (len(shape) - 1))
        if number.isdecimal():
            return _numbered(name, int(number), path, stages, nested)
        if path[0].split("_")[0] == "embedding" or len(path) == 1:
            return 0  # what is no module is a learned token, or positions
        return last

    return layer_of, last


def stage_depths(body: Any, paths: Iterable[tuple[str, ...]]) -> list[int]:
    """Blocks of each stage; of a body without stages, one entry: as many blocks as its parameters are numbered by."""
    if (depths := getattr(body, "depths", None)) is not None:
        return [int(depth) for depth in depths]
    if (kinds := getattr(body, "kinds", None)) is not None:
        return [len(kind) for kind in kinds]
    if (depth := getattr(body, "depth", None)) is not None:
        return [int(depth)]
    numbers = [int(found[1]) for path in paths if (found := re.fullmatch(r"blocks_(\d+)", path[0]))]
    return [max(numbers) + 1] if numbers else []


def _numbered(name: str, number: int, path: tuple[str, ...], stages: list[range], nested: bool) -> int:
    """The layer of something with a number behind its name; `nested`: there is one block a stage, with layers in it."""
    if name == "blocks" and not nested:
        return number + 1
    stage = stages[min(number, len(stages) - 1)]
    if name == "blocks":
        inner = _LAYER.fullmatch(path[1])
        return stage.start + 1 + int(inner[1]) if inner else stage.stop
    return stage.stop if name in BEHIND else stage.start
