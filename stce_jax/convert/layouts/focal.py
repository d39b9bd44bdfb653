"""Focal Transformer (version 1) as its authors' code saves it, with patches or with "conv embed".

Source: the state dict of the published code (microsoft/Focal-Transformer, classification/focal_transformer.py).
"""

import math
from collections.abc import Iterable, Mapping, Set
from typing import Any

from stce_jax.convert.layouts.reading import (
    BUFFERS,
    Arrays,
    count,
    same_everywhere,
    shape,
    whole_ratio,
    window_side,
)
from stce_jax.convert.layouts.rules import (
    CONVOLUTION,
    FIRST_OF_ONE,
    HALVING,
    PATCHES,
    Rule,
    check_own,
    linear,
    norm,
    parameter,
)
from stce_jax.convert.layouts.said import Config
from stce_jax.errors import CheckpointError

TITLE = "Focal Transformer's published code"
PRESET = "focal_t"
IGNORED: tuple[str, ...] = (*BUFFERS, r".*\.valid_ind_rolled")
REFUSED = {
    r"\.attn_mask$": "shifted windows",
    r"\.pool_layers\.1\.weight$": "a third level",
    r"^absolute_pos_embed$": "learned positions of patches",
}
TABLE = "attn.relative_position_bias_table"
LAYER_SCALE = 1e-4  # the published code's initial value, which nothing but an initialisation depends on


def recognise(names: Set[str]) -> bool:
    """Whether a file with these names is of this layout."""
    block = "layers.0.blocks.0"
    return {
        "patch_embed.proj.weight",
        f"{block}.pool_layers.0.weight",
        f"{block}.{TABLE}",
        f"{block}.{TABLE}_to_windows.0",
    } <= names


def options(arrays: Arrays, config: Config) -> dict[str, Any]:
    """The model's options, see `layouts`; all of them show in shapes.

    The window is that of the stage with the largest: those of small maps follow from the size of the images.
    """
    del config
    found: dict[str, list[Any]] = {
        name: [] for name in ("depths", "widths", "heads", "window", "focal_windows", "expands", "mlp_ratio")
    }
    while depth := count(arrays, f"layers.{len(found['depths'])}.blocks.{{}}.norm1.weight"):
        stage = _stage(arrays, f"layers.{len(found['depths'])}.blocks.0")
        for name, value in {"depths": depth, **stage}.items():
            found[name].append(value)
    if not found["depths"]:
        raise CheckpointError("'layers.0.blocks.0.norm1.weight' is missing")
    patch = shape(arrays, "patch_embed.proj.weight", 4)[2]
    halving = "layers.0.downsample.proj.weight"
    # A single stage has none; patches of 4x4 pixels do not overlap, the convolution of "conv embed" has 7x7.
    kernel = shape(arrays, halving, 4)[2] if halving in arrays else 2 + (patch == 7)
    scaled = "layers.0.blocks.0.gamma_1" in arrays
    return {
        "embedding": "overlap_patch" if kernel == 3 else "linear_patch",
        "patch_size": patch,
        "halving_kernel": kernel,
        **{name: tuple(found[name]) for name in ("depths", "widths", "heads", "focal_windows", "expands")},
        "window": max(found["window"]),
        "mlp_ratio": same_everywhere("mlp_ratio", found["mlp_ratio"]),
        "layer_scale": (LAYER_SCALE * scaled,) * len(found["depths"]),
    }


def _stage(arrays: Arrays, block: str) -> dict[str, int]:
    hidden, width = shape(arrays, f"{block}.mlp.fc1.weight", 2)
    offsets, heads = shape(arrays, f"{block}.{TABLE}", 2)
    window = window_side(arrays, f"{block}.{TABLE}", offsets)
    _, pooled = shape(arrays, f"{block}.{TABLE}_to_windows.0", 2)
    around = f"{block}.{TABLE}_to_neighbors"
    inner = window**2 - (shape(arrays, around, 4)[3] // 4 if around in arrays else 0)  # (w - expand)^2 of w w places
    return {
        "widths": width,
        "heads": heads,
        "window": window,
        "focal_windows": math.isqrt(pooled) - window + 1,
        "expands": window - math.isqrt(max(inner, 0)),
        "mlp_ratio": whole_ratio("mlp_ratio", hidden, width),
    }


def rules(options: Mapping[str, Any]) -> Iterable[Rule]:
    """The rules of a model with these options, see `layouts`."""
    check_own(options, "Focal Transformer", wrap=True)
    overlap = options["halving_kernel"] == 3
    embedding, form = ("convolution", CONVOLUTION) if overlap else ("projection", PATCHES)
    yield from linear(f"embedding/{embedding}", "patch_embed.proj", form=form)
    yield from norm("embedding_norm", "patch_embed.norm")
    done = 0
    for stage, depth in enumerate(options["depths"]):
        if stage:
            ours, theirs = f"halving_{stage - 1}", f"layers.{stage - 1}.downsample"
            yield from linear(f"{ours}/projection", f"{theirs}.proj", form=CONVOLUTION if overlap else HALVING)
            yield from norm(f"{ours}/norm", f"{theirs}.norm")
        for index in range(depth):
            yield from _block(
                f"blocks_{done + index}", f"layers.{stage}.blocks.{index}", bool(options["layer_scale"][stage])
            )
        done += depth
    yield from norm("norm", "norm")
    yield from linear("head", "head", optional=True)


def _block(ours: str, theirs: str, scaled: bool) -> Iterable[Rule]:
    attention = f"{ours}/attention"
    yield from norm(f"{ours}/attention_norm", f"{theirs}.norm1")
    yield from linear(f"{attention}/qkv", f"{theirs}.attn.qkv")
    yield from linear(f"{attention}/out", f"{theirs}.attn.proj")
    yield from linear(f"{attention}/pool", f"{theirs}.pool_layers.0")
    yield parameter(f"{attention}/bias_table", f"{theirs}.{TABLE}")
    yield parameter(f"{attention}/pooled_bias_table", f"{theirs}.{TABLE}_to_windows.0")
    # Not where a map is as small as a window, which the size of images decides.
    yield Rule(f"params/{attention}/surrounding_bias", (f"{theirs}.{TABLE}_to_neighbors",), FIRST_OF_ONE, optional=True)
    if scaled:
        yield parameter(f"{ours}/attention_scale/scale", f"{theirs}.gamma_1")
        yield parameter(f"{ours}/mlp_scale/scale", f"{theirs}.gamma_2")
    yield from norm(f"{ours}/mlp_norm", f"{theirs}.norm2")
    yield from linear(f"{ours}/mlp/in", f"{theirs}.mlp.fc1")
    yield from linear(f"{ours}/mlp/out", f"{theirs}.mlp.fc2")
