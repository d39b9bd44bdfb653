"""CMT as its first author's code saves it: CMT-S and the like.

Source: the state dict of the published code (ggjy/CMT.pytorch, cmt.py).
"""

import itertools
from collections.abc import Iterable, Mapping, Set
from typing import Any

from stce_jax.convert.layouts.reading import BUFFERS, Arrays, count, shape
from stce_jax.convert.layouts.rules import CONVOLUTION, HALVING, POINTWISE, Rule, batch_norm, linear, norm, parameter
from stce_jax.convert.layouts.said import Config, published

TITLE = "CMT's published code"
PRESET = "cmt_s"
IGNORED: tuple[str, ...] = BUFFERS
STAGES = "abcd"


def recognise(names: Set[str]) -> bool:
    """Whether a file with these names is of this layout."""
    return {
        "stem_conv1.weight",
        "patch_embed_a.proj.weight",
        "relative_pos_a",
        "blocks_a.0.mlp.conv1.0.weight",
    } <= names


def options(arrays: Arrays, config: Config) -> dict[str, Any]:
    """The model's options, see `layouts`; all of them show in shapes. The size of images is in the position biases'."""
    del config
    found: dict[str, list[int]] = {name: [] for name in ("widths", "depths", "heads", "key_strides", "hidden")}
    for letter in itertools.takewhile(lambda letter: f"relative_pos_{letter}" in arrays, STAGES):
        block = f"blocks_{letter}.0"
        pooling = f"{block}.attn.sr.0.weight"
        hidden, width = shape(arrays, f"{block}.mlp.conv1.0.weight", 4)[:2]
        found["widths"].append(width)
        found["hidden"].append(hidden)
        found["depths"].append(count(arrays, f"blocks_{letter}.{{}}.norm1.weight"))
        found["heads"].append(shape(arrays, f"relative_pos_{letter}", 3)[0])
        found["key_strides"].append(shape(arrays, pooling, 4)[2] if pooling in arrays else 1)
    shaped = {name: tuple(entries) for name, entries in found.items() if name != "hidden"}
    return {
        **shaped,
        "mlp_ratios": _ratios(shaped, found["hidden"]),
        "head_width": shape(arrays, "_fc.weight", 4)[0],
        "stem_widths": tuple(shape(arrays, f"stem_conv{number}.weight", 4)[0] for number in (1, 2, 3)),
    }


def _ratios(shaped: Mapping[str, Any], hidden: list[int]) -> tuple[float, ...]:
    """Of MLPs, whose products with the widths are rounded down: those of the published size, else one that fits."""
    size, widths = published("cmt", shaped), shaped["widths"]
    if size and [int(width * ratio) for width, ratio in zip(widths, size["mlp_ratios"], strict=True)] == hidden:
        return tuple(size["mlp_ratios"])
    # Where hidden / width comes out too small by its rounding, half a channel more does not.
    exact = [own / width for own, width in zip(hidden, widths, strict=True)]
    return tuple(
        ratio if int(width * ratio) == own else (own + 0.5) / width
        for ratio, own, width in zip(exact, hidden, widths, strict=True)
    )


def rules(options: Mapping[str, Any]) -> Iterable[Rule]:
    """The rules of a model with these options, see `layouts`."""
    for index, _ in enumerate(options["stem_widths"], start=1):
        yield from linear(f"embedding/module_{index}/convolution", f"stem_conv{index}", form=CONVOLUTION)
        yield from batch_norm(f"embedding/module_{index}/norm", f"stem_norm{index}")
    done = 0
    for stage, (letter, depth) in enumerate(zip(STAGES, options["depths"], strict=False)):
        merging = f"merging_{stage - 1}" if stage else "embedding/halving"
        yield from linear(f"{merging}/projection", f"patch_embed_{letter}.proj", form=HALVING)
        yield from norm(f"stage_norms_{stage}", f"patch_embed_{letter}.norm")
        yield parameter(f"position_bias_{stage}", f"relative_pos_{letter}")
        for index in range(depth):
            pooled = options["key_strides"][stage] > 1
            yield from _block(f"blocks_{done + index}", f"blocks_{letter}.{index}", pooled)
        done += depth
    yield from linear("projection", "_fc", form=POINTWISE)
    yield from batch_norm("norm", "_bn")
    yield from linear("head", "head", optional=True)


def _block(ours: str, theirs: str, pooled: bool) -> Iterable[Rule]:
    yield from linear(f"{ours}/position", f"{theirs}.proj", form=CONVOLUTION)
    yield from norm(f"{ours}/attention_norm", f"{theirs}.norm1")
    for name, letter in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "proj")):
        yield from linear(f"{ours}/attention/{name}", f"{theirs}.attn.{letter}")
    if pooled:
        yield from linear(f"{ours}/attention", f"{theirs}.attn.sr.0", form=CONVOLUTION)
        yield from batch_norm(f"{ours}/attention/norm", f"{theirs}.attn.sr.1")
    yield from norm(f"{ours}/mlp_norm", f"{theirs}.norm2")
    yield from linear(f"{ours}/mlp/in", f"{theirs}.mlp.conv1.0", form=POINTWISE)
    yield from batch_norm(f"{ours}/mlp/in_norm", f"{theirs}.mlp.conv1.2")
    yield from linear(f"{ours}/mlp/depthwise", f"{theirs}.mlp.proj", form=CONVOLUTION)
    yield from batch_norm(f"{ours}/mlp/depthwise_norm", f"{theirs}.mlp.proj_bn")
    yield from linear(f"{ours}/mlp/out", f"{theirs}.mlp.conv2.0", form=POINTWISE)
    yield from batch_norm(f"{ours}/mlp/out_norm", f"{theirs}.mlp.conv2.1")
