"""timm's Swin, from version 0.9 on: `swin_tiny_patch4_window7_224` and the like.

Source: timm.models.swin_transformer, read off the names and shapes of its state dict.
"""

from collections.abc import Iterable, Mapping, Set
from typing import Any

from stce_jax.convert.layouts import swin
from stce_jax.convert.layouts.reading import BUFFERS, Arrays
from stce_jax.convert.layouts.rules import Rule
from stce_jax.convert.layouts.said import Config
from stce_jax.convert.layouts.swin_names import read_options, rules_of

TITLE = "timm's Swin"
PRESET = "swin_t"
IGNORED: tuple[str, ...] = BUFFERS
REFUSED = swin.REFUSED
NAMES = swin.NAMES._replace(merging="layers.{next}.downsample", head="head.fc")


def recognise(names: Set[str]) -> bool:
    """Whether a file with these names is of this layout: with patch merging at the start of a stage."""
    merging = "layers.1.downsample.reduction.weight" in names and "layers.0.downsample.reduction.weight" not in names
    single = "layers.1.blocks.0.norm1.weight" not in names and "head.fc.weight" in names
    return names >= swin.ALL and swin.NO_OTHER not in names and (merging or single)


def options(arrays: Arrays, config: Config) -> dict[str, Any]:
    """The model's options, see `layouts`; all of them show in shapes."""
    del config
    return read_options(NAMES, arrays)


def rules(options: Mapping[str, Any]) -> Iterable[Rule]:
    """The rules of a model with these options, see `layouts`."""
    return rules_of(NAMES, options)
