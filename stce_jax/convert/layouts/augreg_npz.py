"""The ViT of vision_transformer (AugReg and others) and of big_vision: flax's parameters in a .npz file.

big_vision's have a prefix, other numbers in names, positions without the class token, and blocks that may be stacked;
`normal` brings them to the names of vision_transformer. The authors compute GELU by its tanh approximation; the model
here computes it exactly, as timm does with the same weights.

Source: the names and shapes in the files, as timm.models.vision_transformer reads them.
"""

import math
import re
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np

from stce_jax.convert.layouts.reading import renamed, shape
from stce_jax.convert.layouts.rules import SAME, Form, Rule, parameter
from stce_jax.errors import CheckpointError, shown

TITLE = "the ViT of vision_transformer or big_vision (.npz)"
PRESET = "deit_s"
IGNORED: tuple[str, ...] = ()
NORMALIZATION = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # pixels are scaled to -1..1
REFUSED = {
    r"^pre_logits/": "a layer before the head (pre_logits)",
    r"^MAPHead_0/": "attention pooling (MAPHead)",
    r"^(conv_root|gn_root|block\d)": "a ResNet as its embedding",
}
PREFIXES = r"^(opt/target/|params/img/|params/)"
POSITIONS = "Transformer/posembed_input/pos_embedding"
BLOCK = "Transformer/encoderblock_{}/"
DEEPEST = 1000  # blocks that are stacked
# Names of big_vision's blocks and vision_transformer's.
RENAMED = {"MultiHeadDotProductAttention_0/": "MultiHeadDotProductAttention_1/", "LayerNorm_1/": "LayerNorm_2/"}
RENAMED |= {"MlpBlock_0/": "MlpBlock_3/"}


def recognise(names: Set[str]) -> bool:
    """Whether a file with these names is of this layout."""
    bare = {re.sub(PREFIXES, "", name) for name in names}
    return "embedding/kernel" in bare and any(name.startswith("Transformer/encoderblock") for name in bare)


def normal(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays under the names of vision_transformer, block by block, with a position for the class token."""
    bare = renamed(arrays, lambda name: re.sub(PREFIXES, "", name))
    found: dict[str, np.ndarray] = {}
    for name, array in bare.items():
        if match := re.fullmatch(r"Transformer/encoderblock/(.*)", name):
            if not array.ndim or len(array) > DEEPEST:
                raise CheckpointError(f"{shown(name)} has the shape {array.shape}, not one part for each block")
            found |= {BLOCK.format(index) + match[1]: part for index, part in enumerate(array)}
        else:
            found[name] = array
    if BLOCK.format(0) + "MlpBlock_0/Dense_0/kernel" in found:
        found = {_renamed(name): array for name, array in found.items()}
    if "pos_embedding" in found:
        positions = found.pop("pos_embedding")
        positions = positions[None] if positions.ndim == 2 else positions
        places = positions.shape[1] if positions.ndim == 3 else 0
        if "cls" in found and places and math.isqrt(places) ** 2 == places:
            positions = np.pad(positions, ((0, 0), (1, 0), (0, 0)))
        found[POSITIONS] = positions
    return found


def _renamed(name: str) -> str:
    for old, new in RENAMED.items():
        name = re.sub(rf"^(Transformer/encoderblock_\d+/){old}", rf"\g<1>{new}", name)
    return name


def options(arrays: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """The model's options, see `layouts`: shapes say all of them."""
    del config
    patch, _, channels, width = shape(arrays, "embedding/kernel", 4)
    if channels != 3:
        raise CheckpointError(f"its patch embedding takes images of {channels} channels, the model here of 3")
    if POSITIONS not in arrays:
        raise CheckpointError("its positions are not in the file (sincos2d of big_vision, which differs from ours)")
    depth = [name for name in arrays if re.fullmatch(r"Transformer/encoderblock_\d+/LayerNorm_0/scale", name)]
    return {
        "patch_size": patch,
        "width": width,
        "depth": len(depth),
        "heads": shape(arrays, f"{BLOCK.format(0)}MultiHeadDotProductAttention_1/query/kernel", 3)[1],
        "mlp_dim": shape(arrays, f"{BLOCK.format(0)}MlpBlock_3/Dense_0/bias", 1)[0],
        "pooling": "class" if "cls" in arrays else "mean",
    }


def rules(options: Mapping[str, Any]) -> Iterable[Rule]:
    """The rules of a model with these options, see `layouts`."""
    heads, side = options["heads"], options["patch_size"]
    outer = Form(lambda array: array.reshape(-1, array.shape[-1]), lambda array: array.reshape(side, side, 3, -1), 4)
    into = Form(lambda array: array.reshape(len(array), -1), lambda array: array.reshape(len(array), heads, -1), 3)
    out = Form(
        lambda array: array.reshape(-1, array.shape[-1]), lambda array: array.reshape(heads, -1, array.shape[-1]), 3
    )
    of_heads = Form(lambda array: array.reshape(-1), lambda array: array.reshape(heads, -1), 2)
    yield from _layer("embedding/projection", "embedding", outer)
    if options["pooling"] == "class":
        yield parameter("class_token", "cls")
    yield parameter("position_embedding", POSITIONS)
    for index in range(options["depth"]):
        ours, theirs = f"blocks_{index}", BLOCK.format(index)
        attention = f"{theirs}MultiHeadDotProductAttention_1"
        parts = [f"{attention}/{part}" for part in ("query", "key", "value")]
        yield Rule(f"params/{ours}/attention/qkv/kernel", tuple(f"{part}/kernel" for part in parts), into)
        yield Rule(f"params/{ours}/attention/qkv/bias", tuple(f"{part}/bias" for part in parts), of_heads)
        yield from _layer(f"{ours}/attention/out", f"{attention}/out", out)
        yield from _norm(f"{ours}/attention_norm", f"{theirs}LayerNorm_0")
        yield from _norm(f"{ours}/mlp_norm", f"{theirs}LayerNorm_2")
        yield from _layer(f"{ours}/mlp/in", f"{theirs}MlpBlock_3/Dense_0")
        yield from _layer(f"{ours}/mlp/out", f"{theirs}MlpBlock_3/Dense_1")
    yield from _norm("norm", "Transformer/encoder_norm")
    yield from _layer("head", "head", optional=True)


def _layer(ours: str, theirs: str, form: Form = SAME, optional: bool = False) -> Iterable[Rule]:
    """The rules of a linear layer whose kernel lies as ours."""
    yield Rule(f"params/{ours}/kernel", (f"{theirs}/kernel",), form, optional)
    yield Rule(f"params/{ours}/bias", (f"{theirs}/bias",), SAME, optional)


def _norm(ours: str, theirs: str) -> Iterable[Rule]:
    """The rules of a LayerNorm whose arrays are called as ours."""
    yield parameter(f"{ours}/scale", f"{theirs}/scale")
    yield parameter(f"{ours}/bias", f"{theirs}/bias")
