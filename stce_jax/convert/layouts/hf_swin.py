"""Hugging Face's SwinForImageClassification: `microsoft/swin-tiny-patch4-window7-224` and the like.

Source: transformers.models.swin, read off the names and shapes of its state dict.
"""

from collections.abc import Iterable, Mapping, Set
from typing import Any

from stce_jax.convert.layouts import said, swin_names
from stce_jax.convert.layouts.reading import BUFFERS, Arrays
from stce_jax.convert.layouts.rules import Rule
from stce_jax.convert.layouts.said import Config
from stce_jax.convert.layouts.swin_names import TABLE, Names, read_options, rules_of

TITLE = "Hugging Face's Swin"
PRESET = "swin_t"
IGNORED: tuple[str, ...] = BUFFERS
REFUSED = swin_names.REFUSED
NAMES = Names(
    embedding="swin.embeddings.patch_embeddings.projection",
    embedding_norm="swin.embeddings.norm",
    norm="swin.layernorm",
    head="classifier",
    block="swin.encoder.layers.{stage}.blocks.{block}.",
    attention_norm="layernorm_before",
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    attention="attention.self",
    out="attention.output.dense",
    mlp_norm="layernorm_after",
    mlp_in="intermediate.dense",
    mlp_out="output.dense",
    merging="swin.encoder.layers.{stage}.downsample",
)


def recognise(names: Set[str]) -> bool:
    """Whether a file with these names is of this layout."""
    return is_of(NAMES, names)


def is_of(layout: Names, names: Set[str]) -> bool:
    """Whether a file with these names has a Swin by those of a layout."""
    first = layout.of_block(0, 0)
    return {
        f"{layout.embedding}.weight",
        f"{first}{layout.qkv[0]}.weight",
        f"{first}{layout.attention}.{TABLE}",
    } <= names


def options(arrays: Arrays, config: Config) -> dict[str, Any]:
    """The model's options, see `layouts`; all of them show in shapes, and config.json may only agree."""
    return options_of(NAMES, arrays, config)


def options_of(layout: Names, arrays: Arrays, config: Config) -> dict[str, Any]:
    """The same by the names of a layout."""
    said.require(config, "hidden_act", ("gelu",), "its activation is not the model's, the exact GELU")
    said.require(config, "layer_norm_eps", (1e-5,), "the model's LayerNorms have 1e-05")
    return read_options(layout, arrays)


def rules(options: Mapping[str, Any]) -> Iterable[Rule]:
    """The rules of a model with these options, see `layouts`."""
    return rules_of(NAMES, options)
