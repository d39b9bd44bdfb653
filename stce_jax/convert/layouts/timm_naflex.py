"""The ViT over Table 3's patch embedding as timm's NaFlexVit: norm, linear layer and norm of each patch.

timm builds such a model from a `NaFlexVitCfg`; `embeds.norm_input` and `embeds.norm` are LayerNorms that have to be set
after construction (timm 1.0.31 forwards neither). Its positions are a map without a place for the class token: what
ours has there is added to the token itself.

Source: timm.models.naflexvit, read off the names and shapes of a state dict.
"""

import math
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np

from stce_jax.convert.layouts import said, timm_vit
from stce_jax.convert.layouts.reading import shape
from stce_jax.convert.layouts.rules import Form, Rule, linear, norm, parameter
from stce_jax.errors import CheckpointError

TITLE = "timm's NaFlexViT with normed patches"
PRESET = "vit_s_patch"
IGNORED: tuple[str, ...] = ()
GUESSED = ("heads",)
REFUSED = {r"^embeds\.reg_token$": "register tokens", **timm_vit.REFUSED}
POSITIONS, CLASS_TOKEN = "params/position_embedding", "params/class_token"


def recognise(names: Set[str]) -> bool:
    """Whether a file with these names is of this layout."""
    return {"embeds.norm_input.weight", "embeds.norm.weight", "embeds.proj.weight", "embeds.pos_embed"} <= names


def options(arrays: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """The model's options, see `layouts`; for the number of heads see `timm_vit`."""
    width, pixels = shape(arrays, "embeds.proj.weight", 2)
    arguments = said.section(config, "model_args")
    return {
        "patch_size": math.isqrt(pixels // 3),
        "width": width,
        "depth": sum(name.endswith(".norm1.weight") for name in arrays),
        "heads": said.whole(arguments, "num_heads", said.heads_of(config, width)),
        "mlp_dim": shape(arrays, "blocks.0.mlp.fc1.weight", 2)[0],
        "pooling": "class" if "embeds.cls_token" in arrays else "mean",
        **timm_vit.block_options(arrays, arguments),
    }


def rules(options: Mapping[str, Any]) -> Iterable[Rule]:
    """The rules of a model with these options, see `layouts`."""
    has_class_token = options["pooling"] == "class"
    yield from norm("embedding/patch_norm", "embeds.norm_input")
    yield from linear("embedding/projection", "embeds.proj")
    yield from norm("embedding/norm", "embeds.norm")
    if has_class_token:
        yield parameter("class_token", "embeds.cls_token")
    yield parameter("position_embedding", "embeds.pos_embed", _positions(int(has_class_token)))
    yield from timm_vit.blocks(options)


def _positions(leading: int) -> Form:
    """[1, h, w, D] and [1, leading + h w, D], the leading ones 0; a map that is written must be a square."""

    def read(grid: np.ndarray) -> np.ndarray:
        return np.pad(grid.reshape(1, -1, grid.shape[-1]), ((0, 0), (leading, 0), (0, 0)))

    def write(positions: np.ndarray) -> np.ndarray:
        rest = positions[:, leading:]
        side = math.isqrt(rest.shape[1])
        if side * side != rest.shape[1]:
            raise CheckpointError(
                f"{TITLE} is written with a square of positions alone, this model has {rest.shape[1]}"
            )
        return rest.reshape(1, side, side, -1)

    return Form(read, write, 4)


def for_writing(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The class token's position added to the token, as timm's has none."""
    if CLASS_TOKEN not in arrays:
        return dict(arrays)
    positions = arrays[POSITIONS].copy()
    token = arrays[CLASS_TOKEN] + positions[:, :1]
    positions[:, :1] = 0.0
    return {**arrays, CLASS_TOKEN: token, POSITIONS: positions}
