"""Swin as its authors' code saves it: `swin_tiny_patch4_window7_224` and the like; timm's up to version 0.8, too.

Source: the state dict of the published code (microsoft/Swin-Transformer, models/swin_transformer.py).
"""

from collections.abc import Iterable, Mapping, Set
from typing import Any

from stce_jax.convert.layouts import swin_names
from stce_jax.convert.layouts.reading import BUFFERS, Arrays
from stce_jax.convert.layouts.rules import Rule
from stce_jax.convert.layouts.said import Config
from stce_jax.convert.layouts.swin_names import Names, read_options, rules_of

TITLE = "Swin's published code"
PRESET = "swin_t"
IGNORED: tuple[str, ...] = BUFFERS
REFUSED = swin_names.REFUSED
NAMES = Names(
    embedding="patch_embed.proj",
    embedding_norm="patch_embed.norm",
    norm="norm",
    head="head",
    block="layers.{stage}.blocks.{block}.",
    attention_norm="norm1",
    qkv=("attn.qkv",),
    attention="attn",
    out="attn.proj",
    mlp_norm="norm2",
    mlp_in="mlp.fc1",
    mlp_out="mlp.fc2",
    merging="layers.{stage}.downsample",
)
ALL = {
    "patch_embed.norm.weight",
    "layers.0.blocks.0.norm1.weight",
    "layers.0.blocks.0.attn.relative_position_bias_table",
}
NO_OTHER = "layers.0.blocks.0.pool_layers.0.weight"  # Focal's


def recognise(names: Set[str]) -> bool:
    """Whether a file with these names is of this layout: with patch merging at the end of a stage."""
    merging = "layers.0.downsample.reduction.weight" in names
    single = "layers.1.blocks.0.norm1.weight" not in names and "head.fc.weight" not in names
    return names >= ALL and NO_OTHER not in names and (merging or single)


def options(arrays: Arrays, config: Config) -> dict[str, Any]:
    """The model's options, see `layouts`; all of them show in shapes."""
    del config
    return read_options(NAMES, arrays)


def rules(options: Mapping[str, Any]) -> Iterable[Rule]:
    """The rules of a model with these options, see `layouts`."""
    return rules_of(NAMES, options)
