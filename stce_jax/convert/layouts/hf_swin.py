"""Hugging Face's SwinForImageClassification: `microsoft/swin-tiny-patch4-window7-224` and the like.

Source: transformers.models.swin, read off the names and shapes of its state dict.
"""

from collections.abc import Mapping, Set
from typing import Any

from stce_jax.convert.layouts.reading import BUFFERS, Arrays, Config, expect
from stce_jax.convert.layouts.rules import Rule
from stce_jax.convert.layouts.swin_names import Names, read_options, rules_of

TITLE = "Hugging Face's Swin"
PRESET = "swin_t"
IGNORED = BUFFERS
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
    positions=r"swin\.embeddings\.position_embeddings",
)


def recognise(names: Set[str]) -> bool:
    """Whether a file with these names is of this layout."""
    attention = "swin.encoder.layers.0.blocks.0.attention.self"
    return {
        f"{NAMES.embedding}.weight",
        f"{attention}.query.weight",
        f"{attention}.relative_position_bias_table",
    } <= names


def options(arrays: Arrays, config: Config) -> dict[str, Any]:
    """The model's options, see `layouts`; all of them show in shapes, and config.json may only agree."""
    expect(config, hidden_act="gelu", layer_norm_eps=1e-5)
    return read_options(NAMES, arrays)


def rules(options: Mapping[str, Any]) -> list[Rule]:
    """The rules of a model with these options, see `layouts`."""
    return list(rules_of(NAMES, options))
