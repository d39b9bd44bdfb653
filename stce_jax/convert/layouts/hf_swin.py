"""Hugging Face's SwinForImageClassification: `microsoft/swin-tiny-patch4-window7-224` and the like.

Files have the same names in all versions of transformers; those that version 5 has in memory are read, too.

Source: transformers.models.swin up to 5.24, read off the names and shapes of its state dict.
"""

from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np

from stce_jax.convert.layouts import said, swin_names
from stce_jax.convert.layouts.reading import BUFFERS, Arrays, renamed, replaced
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
# What transformers 5 calls in memory what files call otherwise.
RENAMED = {
    r"\.attention\.q_proj\.": ".attention.self.query.",
    r"\.attention\.k_proj\.": ".attention.self.key.",
    r"\.attention\.v_proj\.": ".attention.self.value.",
    r"\.attention\.relative_position_bias\.": ".attention.self.",
    r"\.attention\.o_proj\.": ".attention.output.dense.",
    r"\.mlp\.fc1\.": ".intermediate.dense.",
    r"\.mlp\.fc2\.": ".output.dense.",
}


def _in_files(name: str) -> str:
    return replaced(name, RENAMED)


def recognise(names: Set[str]) -> bool:
    """Whether a file with these names is of this layout."""
    first = NAMES.of_block(0, 0)
    needed = {f"{NAMES.embedding}.weight", f"{first}{NAMES.qkv[0]}.weight", f"{first}{NAMES.attention}.{TABLE}"}
    return needed <= set(map(_in_files, names))


def normal(arrays: Arrays) -> dict[str, np.ndarray]:
    """The arrays under the names of files."""
    return renamed(arrays, _in_files)


def options(arrays: Arrays, config: Config) -> dict[str, Any]:
    """The model's options, see `layouts`; all of them show in shapes, and config.json may only agree."""
    said.require(config, "hidden_act", ("gelu",), "its activation is not the model's, the exact GELU")
    said.require(config, "layer_norm_eps", (1e-5,), "the model's LayerNorms have 1e-05")
    return read_options(NAMES, arrays)


def rules(options: Mapping[str, Any]) -> Iterable[Rule]:
    """The rules of a model with these options, see `layouts`."""
    return rules_of(NAMES, options)
