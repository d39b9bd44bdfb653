"""timm's ViT and DeiT, which DeiT's authors share: `vit_*_patch16_224`, `deit_*`, `deit_*_distilled_*`.

Source: timm.models.vision_transformer and timm.models.deit, read off the names and shapes of their state dicts.
"""

from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np

from stce_jax.convert.layouts.rules import PATCHES, Rule, linear, norm, parameter

TITLE = "timm's ViT or DeiT"
PRESET = "deit_s"
IGNORED: tuple[str, ...] = ()


def recognise(names: Set[str]) -> bool:
    """Whether a file with these names is of this layout."""
    return {"pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight"} <= names


def options(arrays: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """The model's options, see `layouts`; the number of heads is 64 channels each where the config does not say it."""
    width, _, patch, _ = arrays["patch_embed.proj.weight"].shape
    return {
        "patch_size": patch,
        "width": width,
        "depth": sum(name.endswith(".norm1.weight") for name in arrays),
        "heads": config.get("model_args", {}).get("num_heads", max(1, width // 64)),
        "mlp_dim": len(arrays["blocks.0.mlp.fc1.weight"]),
        "distilled": "dist_token" in arrays,
        "pooling": "class" if "cls_token" in arrays else "mean",
    }


def rules(options: Mapping[str, Any]) -> list[Rule]:
    """The rules of a model with these options, see `layouts`."""
    return list(_rules(options))


def _rules(options: Mapping[str, Any]) -> Iterable[Rule]:
    yield from linear("embedding/projection", "patch_embed.proj", form=PATCHES)
    if options["pooling"] == "class":
        yield parameter("class_token", "cls_token")
    yield parameter("position_embedding", "pos_embed")
    for index in range(options["depth"]):
        yield from norm(f"blocks_{index}/attention_norm", f"blocks.{index}.norm1")
        yield from linear(f"blocks_{index}/attention/qkv", f"blocks.{index}.attn.qkv")
        yield from linear(f"blocks_{index}/attention/out", f"blocks.{index}.attn.proj")
        yield from norm(f"blocks_{index}/mlp_norm", f"blocks.{index}.norm2")
        yield from linear(f"blocks_{index}/mlp/in", f"blocks.{index}.mlp.fc1")
        yield from linear(f"blocks_{index}/mlp/out", f"blocks.{index}.mlp.fc2")
    yield from norm("norm", "norm")
    yield from linear("head", "head")
    if options["distilled"]:
        yield parameter("distillation_token", "dist_token")
        yield from linear("distillation_head", "head_dist")
