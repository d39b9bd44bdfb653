"""timm's ViT and DeiT, which DeiT's authors share: `vit_*_patch16_224`, `deit_*`, `deit_*_distilled_*`.

Source: timm.models.vision_transformer and timm.models.deit, read off the names and shapes of their state dicts.
"""

import math
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np

from stce_jax.convert.layouts import said
from stce_jax.convert.layouts.reading import shape
from stce_jax.convert.layouts.rules import PATCHES, Rule, linear, norm, parameter
from stce_jax.errors import CheckpointError

TITLE = "timm's ViT or DeiT"
PRESET = "deit_s"
IGNORED: tuple[str, ...] = ()
GUESSED = ("heads",)
BLOCK_VARIANTS = {
    r"\.ls[12]\.gamma$|\.gamma_[12]$": "layer scale",
    r"\.attn\.[qk]_norm\.": "norms of queries and keys",
    r"\.attn\.norm\.|\.mlp\.norm\.": "norms inside of attention or MLP",
    r"\.mlp\.(fc1_g|fc1_x|w1|w2|w3|w12)\.": "gated MLPs (SwiGLU)",
    r"\.attn\.(rel_pos|relative_position)": "relative positions",
}
REFUSED = {
    r"^reg_token$": "register tokens",
    r"^norm_pre\.": "a norm before the blocks (norm_pre)",
    r"^fc_norm\.": "a norm behind the pooling (fc_norm)",
    r"^attn_pool\.": "attention pooling",
    r"(^|\.)rope\.|freqs": "rotary positions",
    r"^patch_embed\.(norm|backbone)\.": "another patch embedding",
    **BLOCK_VARIANTS,
}


def recognise(names: Set[str]) -> bool:
    """Whether a file with these names is of this layout."""
    return {"pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.norm1.weight"} <= names


def options(arrays: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """The model's options, see `layouts`; the number of heads is that of published sizes if the config says none."""
    arguments = said.section(config, "model_args")
    width, _, patch, _ = shape(arrays, "patch_embed.proj.weight", 4)
    has_class_token = "cls_token" in arrays
    _check_pooling(config, arguments, has_class_token)
    if has_class_token and arrays["pos_embed"].ndim == 3:
        places = arrays["pos_embed"].shape[1]
        if math.isqrt(places) ** 2 == places and "dist_token" not in arrays:
            raise CheckpointError("its class token has no position (no_embed_class), which the model here gives it")
    return {
        "patch_size": patch,
        "width": width,
        "depth": sum(name.endswith(".norm1.weight") for name in arrays),
        "heads": said.whole(arguments, "num_heads", said.heads_of(config, width)),
        "mlp_dim": shape(arrays, "blocks.0.mlp.fc1.weight", 2)[0],
        "distilled": "dist_token" in arrays,
        "pooling": "class" if has_class_token else "mean",
    }


def _check_pooling(config: Mapping[str, Any], arguments: Mapping[str, Any], has_class_token: bool) -> None:
    said.require(arguments, "act_layer", (None, "gelu"), "its activation is not the model's, the exact GELU")
    for place in (config, arguments):
        accepted = (None, "", "token") if has_class_token else (None, "", "avg")
        beside = "beside a class token" if has_class_token else "without a class token"
        said.require(place, "global_pool", accepted, f"such pooling {beside} is not the model's")


def rules(options: Mapping[str, Any]) -> Iterable[Rule]:
    """The rules of a model with these options, see `layouts`."""
    yield from linear("embedding/projection", "patch_embed.proj", form=PATCHES)
    if options["pooling"] == "class":
        yield parameter("class_token", "cls_token")
    yield parameter("position_embedding", "pos_embed")
    yield from blocks(options)
    if options["distilled"]:
        yield parameter("distillation_token", "dist_token")
        yield from linear("distillation_head", "head_dist", optional=True)


def blocks(options: Mapping[str, Any]) -> Iterable[Rule]:
    """The rules of blocks, last norm and head, which timm's transformers share."""
    for index in range(options["depth"]):
        yield from norm(f"blocks_{index}/attention_norm", f"blocks.{index}.norm1")
        yield from linear(f"blocks_{index}/attention/qkv", f"blocks.{index}.attn.qkv")
        yield from linear(f"blocks_{index}/attention/out", f"blocks.{index}.attn.proj")
        yield from norm(f"blocks_{index}/mlp_norm", f"blocks.{index}.norm2")
        yield from linear(f"blocks_{index}/mlp/in", f"blocks.{index}.mlp.fc1")
        yield from linear(f"blocks_{index}/mlp/out", f"blocks.{index}.mlp.fc2")
    yield from norm("norm", "norm")
    yield from linear("head", "head", optional=True)
