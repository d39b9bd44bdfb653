"""timm's ViT and DeiT, which DeiT's authors share: `vit_*_patch16_224`, `deit_*`, `deit_*_distilled_*`.

Source: timm.models.vision_transformer and timm.models.deit, read off the names and shapes of their state dicts.
"""

import math
import re
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
REGISTERS, POSITIONS = "params/registers", "params/position_embedding"
GUESSED = ("heads",)
SCALE = 1e-5  # where timm's layer scale begins, which weights replace
PLAIN = {"registers": 0, "norm": "layernorm", "qk_norm": False, "layer_scale": 0.0}  # options of the original ViT
BLOCK_VARIANTS = {
    r"\.gamma_[12]$": "layer scale of another form",
    r"\.attn\.norm\.|\.mlp\.norm\.": "norms inside of attention or MLP",
    r"\.mlp\.(fc1_g|fc1_x|w1|w2|w3|w12)\.": "gated MLPs (SwiGLU)",
    r"\.attn\.(rel_pos|relative_position)": "relative positions",
}
REFUSED = {
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


def normal(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays with positions of class and image tokens alone, where there are registers.

    timm has positions of all tokens, or of those of the image alone (no_embed_class). A register's is added to it.
    """
    found = dict(arrays)
    registers, positions = found.get("reg_token"), found["pos_embed"]
    if registers is None or registers.ndim != 3 or positions.shape != (1, *positions.shape[1:2], registers.shape[2]):
        return found  # without registers, or of shapes that are refused where they are read
    first, count = sum(token in found for token in ("cls_token", "dist_token")), positions.shape[1]
    rest = count - first - registers.shape[1]
    of_all, of_image = (side > 0 and math.isqrt(side) ** 2 == side for side in (rest, count))
    if of_all == of_image:
        raise CheckpointError(f"its {count} positions are of no square image, or of two, beside its register tokens")
    if of_image:
        found["pos_embed"] = np.pad(positions, ((0, 0), (first, 0), (0, 0)))
    else:
        parts = np.split(positions, [first, first + registers.shape[1]], axis=1)
        found["reg_token"] = registers + parts[1]
        found["pos_embed"] = np.concatenate([parts[0], parts[2]], axis=1)
    return found


def for_writing(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays with a position for each register, which is 0."""
    if REGISTERS not in arrays or POSITIONS not in arrays:
        return dict(arrays)
    positions, registers = arrays[POSITIONS], arrays[REGISTERS]
    parts = np.split(positions, [int("params/class_token" in arrays)], axis=1)
    return {**arrays, POSITIONS: np.concatenate([parts[0], np.zeros_like(registers), parts[1]], axis=1)}


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
        "registers": shape(arrays, "reg_token", 3)[1] if "reg_token" in arrays else 0,
        **block_options(arrays, arguments),
    }


def block_options(arrays: Mapping[str, np.ndarray], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What shapes and timm's arguments tell of its blocks beside sizes."""
    norm = "rmsnorm" if arguments.get("norm_layer") == "rmsnorm" else "layernorm"
    if norm == "rmsnorm" and "blocks.0.norm1.bias" in arrays:
        raise CheckpointError("its config.json says norm_layer='rmsnorm', which has no blocks.0.norm1.bias")
    return {
        "norm": norm,
        "qk_norm": any(re.search(r"\.attn\.[qk]_norm\.", name) for name in arrays),
        "layer_scale": SCALE if any(re.search(r"\.ls[12]\.gamma$", name) for name in arrays) else 0.0,
    }


def _check_pooling(config: Mapping[str, Any], arguments: Mapping[str, Any], has_class_token: bool) -> None:
    said.require(arguments, "act_layer", (None, "gelu"), "its activation is not the model's, the exact GELU")
    for place in (config, arguments):
        accepted = (None, "", "token") if has_class_token else (None, "", "avg")
        beside = "beside a class token" if has_class_token else "without a class token"
        said.require(place, "global_pool", accepted, f"such pooling {beside} is not the model's")


def rules(options: Mapping[str, Any]) -> Iterable[Rule]:
    """The rules of a model with these options, see `layouts`."""
    options = {**PLAIN, **options}
    yield from linear("embedding/projection", "patch_embed.proj", form=PATCHES)
    if options["pooling"] == "class":
        yield parameter("class_token", "cls_token")
    yield parameter("position_embedding", "pos_embed")
    if options["registers"]:
        yield parameter("registers", "reg_token")
    yield from blocks(options)
    if options["distilled"]:
        yield parameter("distillation_token", "dist_token")
        yield from linear("distillation_head", "head_dist", optional=True)


def blocks(options: Mapping[str, Any]) -> Iterable[Rule]:
    """The rules of blocks, last norm and head, which timm's transformers share."""
    options = {**PLAIN, **options}
    bias = options["norm"] == "layernorm"
    for index in range(options["depth"]):
        ours, theirs = f"blocks_{index}", f"blocks.{index}"
        yield from norm(f"{ours}/attention_norm", f"{theirs}.norm1", bias)
        yield from linear(f"{ours}/attention/qkv", f"{theirs}.attn.qkv")
        if options["qk_norm"]:
            yield from norm(f"{ours}/attention/query_norm", f"{theirs}.attn.q_norm", bias)
            yield from norm(f"{ours}/attention/key_norm", f"{theirs}.attn.k_norm", bias)
        yield from linear(f"{ours}/attention/out", f"{theirs}.attn.proj")
        yield from norm(f"{ours}/mlp_norm", f"{theirs}.norm2", bias)
        yield from linear(f"{ours}/mlp/in", f"{theirs}.mlp.fc1")
        yield from linear(f"{ours}/mlp/out", f"{theirs}.mlp.fc2")
        if options["layer_scale"]:
            yield parameter(f"{ours}/attention_scale/scale", f"{theirs}.ls1.gamma")
            yield parameter(f"{ours}/mlp_scale/scale", f"{theirs}.ls2.gamma")
    yield from norm("norm", "norm", bias)
    yield from linear("head", "head", optional=True)
