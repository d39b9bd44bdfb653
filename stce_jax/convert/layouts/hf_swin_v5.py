"""Hugging Face's Swin by the names that transformers 5 has in memory: what `model.state_dict()` gives.

`save_pretrained` writes those of `hf_swin`, as all versions do.

Source: transformers.models.swin 5.24, read off the names and shapes of its state dict.
"""

from collections.abc import Iterable, Mapping, Set
from typing import Any

from stce_jax.convert.layouts import hf_swin
from stce_jax.convert.layouts.reading import BUFFERS, Arrays
from stce_jax.convert.layouts.rules import Rule
from stce_jax.convert.layouts.said import Config
from stce_jax.convert.layouts.swin_names import rules_of

TITLE = "Hugging Face's Swin in memory"
PRESET = "swin_t"
IGNORED: tuple[str, ...] = BUFFERS
REFUSED = hf_swin.REFUSED
NAMES = hf_swin.NAMES._replace(
    qkv=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    attention="attention.relative_position_bias",
    out="attention.o_proj",
    mlp_in="mlp.fc1",
    mlp_out="mlp.fc2",
)


def recognise(names: Set[str]) -> bool:
    """Whether a file with these names is of this layout."""
    return hf_swin.is_of(NAMES, names)


def options(arrays: Arrays, config: Config) -> dict[str, Any]:
    """The model's options, see `layouts`; all of them show in shapes, and config.json may only agree."""
    return hf_swin.options_of(NAMES, arrays, config)


def rules(options: Mapping[str, Any]) -> Iterable[Rule]:
    """The rules of a model with these options, see `layouts`."""
    return rules_of(NAMES, options)
