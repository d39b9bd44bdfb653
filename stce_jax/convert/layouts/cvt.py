"""CvT as its authors' code saves it: CvT-13 and the like.

Source: the state dict of the published code (microsoft/CvT, lib/models/cls_cvt.py).
"""

from collections.abc import Iterable, Mapping, Set
from typing import Any

from stce_jax.convert.layouts.reading import (
    BUFFERS,
    Arrays,
    count,
    same_everywhere,
    shape,
    whole_ratio,
)
from stce_jax.convert.layouts.rules import CONVOLUTION, Rule, batch_norm, check_own, linear, norm, parameter
from stce_jax.convert.layouts.said import Config, given, unshaped

TITLE = "CvT's published code"
PRESET = "cvt_13"
IGNORED: tuple[str, ...] = BUFFERS
PROJECTED = ("query", "key", "value")


def recognise(names: Set[str]) -> bool:
    """Whether a file with these names is of this layout."""
    return {
        "stage0.patch_embed.proj.weight",
        "stage0.blocks.0.attn.proj_q.weight",
        "stage0.blocks.0.mlp.fc1.weight",
    } <= names


def options(arrays: Arrays, config: Config) -> dict[str, Any]:
    """The model's options, see `layouts`; heads show in no shape, nor do the strides of patches other than of 7x7."""
    depths, widths, ratios = [], [], []
    for stage in range(count(arrays, "stage{}.patch_embed.proj.weight")):
        depths.append(count(arrays, f"stage{stage}.blocks.{{}}.norm1.weight"))
        hidden, width = shape(arrays, f"stage{stage}.blocks.0.mlp.fc1.weight", 2)
        widths.append(width)
        ratios.append(whole_ratio("mlp_ratio", hidden, width))
    shaped = {"widths": tuple(widths), "depths": tuple(depths)}
    patch = shape(arrays, "stage0.patch_embed.proj.weight", 4)[2]
    convolved = "stage0.blocks.0.attn.conv_proj_k.conv.weight" in arrays
    return {
        **shaped,
        **unshaped("cvt", config, shaped, "heads"),
        "mlp_ratio": same_everywhere("mlp_ratio", ratios),
        "class_token": f"stage{len(depths) - 1}.cls_token" in arrays,
        "projection": "conv" if convolved else "average",
        "activation": given(config, "activation") or "quick_gelu",
        "patch_size": patch,
    }


def rules(options: Mapping[str, Any]) -> Iterable[Rule]:
    """The rules of a model with these options, see `layouts`."""
    check_own(options, "CvT", downsample="conv", scale="width")
    depths, done = options["depths"], 0
    for stage, depth in enumerate(depths):
        ours = f"downsampling_{stage - 1}" if stage else "embedding/convolution"
        yield from linear(ours, f"stage{stage}.patch_embed.proj", form=CONVOLUTION)
        yield from norm(f"embedding_norms_{stage}", f"stage{stage}.patch_embed.norm")
        for index in range(depth):
            yield from _block(f"blocks_{done + index}", f"stage{stage}.blocks.{index}", options["projection"] == "conv")
        done += depth
    if options["class_token"]:
        yield parameter("class_token", f"stage{len(depths) - 1}.cls_token")
    yield from norm("norm", "norm")
    yield from linear("head", "head", optional=True)


def _block(ours: str, theirs: str, convolved: bool) -> Iterable[Rule]:
    yield from norm(f"{ours}/attention_norm", f"{theirs}.norm1")
    for name in PROJECTED:
        if convolved:
            projection, convolution = f"{ours}/attention/{name}_projection", f"{theirs}.attn.conv_proj_{name[0]}"
            yield from linear(projection, f"{convolution}.conv", bias=False, form=CONVOLUTION)
            yield from batch_norm(f"{projection}/norm", f"{convolution}.bn")
        yield from linear(f"{ours}/attention/{name}", f"{theirs}.attn.proj_{name[0]}")
    yield from linear(f"{ours}/attention/out", f"{theirs}.attn.proj")
    yield from norm(f"{ours}/mlp_norm", f"{theirs}.norm2")
    yield from linear(f"{ours}/mlp/in", f"{theirs}.mlp.fc1")
    yield from linear(f"{ours}/mlp/out", f"{theirs}.mlp.fc2")
