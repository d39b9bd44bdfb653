"""MobileViT (version 1) as timm saves it: `mobilevit_s`, `mobilevit_xs`, `mobilevit_xxs`.

Source: timm.models.mobilevit and timm.models.byobnet, read off the names and shapes of their state dict.
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
from stce_jax.convert.layouts.rules import CONVOLUTION, POINTWISE, Form, Rule, batch_norm, linear, norm
from stce_jax.convert.layouts.said import Config, given, published
from stce_jax.errors import CheckpointError

TITLE = "timm's MobileViT"
PRESET = "mobilevit_s"
IGNORED: tuple[str, ...] = BUFFERS
REFUSED = {r"^stages\.\d+\.\d+\.(attn|se)\.": "squeeze and excitation"}
HEADS = 4  # timm's, unless a model's configuration says otherwise, which no named one does
EXPAND, DEPTHWISE, PROJECT = "conv1_1x1", "conv2_kxk", "conv3_1x1"


def recognise(names: Set[str]) -> bool:
    """Whether a file with these names is of this layout; those of version 2 have no fusion."""
    return {"stem.conv.weight", f"stages.0.0.{EXPAND}.conv.weight", "final_conv.conv.weight"} <= names and any(
        f"stages.{stage}.1.conv_fusion.conv.weight" in names for stage in range(8)
    )


def options(arrays: Arrays, config: Config) -> dict[str, Any]:
    """The model's options, see `layouts`; heads and strides show in no shape: timm's own, if config.json says none."""
    stages = count(arrays, f"stages.{{}}.0.{EXPAND}.conv.weight")
    first = next((stage for stage in range(stages) if _attends(arrays, stage)), stages)
    blocks = [count(arrays, f"stages.{stage}.{{}}.{EXPAND}.conv.weight") for stage in range(stages)]
    if not 0 < first < stages or set(blocks[: first - 1] + blocks[first:]) - {1}:
        raise CheckpointError(
            f"its stages have {blocks} blocks without attention, and attention from stage {first + 1} on; the body has "
            "several blocks in the last stage before attention alone"
        )
    attending = range(first, stages)
    for stage in attending:
        if not _attends(arrays, stage):
            raise CheckpointError(f"its stage {stage + 1} has no attention, which all of the body's later ones have")
    shaped = {
        "widths": tuple(_residual(arrays, stage)[0] for stage in attending),
        "token_widths": tuple(shape(arrays, f"stages.{stage}.1.conv_1x1.weight", 4)[0] for stage in attending),
        "depths": tuple(count(arrays, f"stages.{stage}.1.transformer.{{}}.norm1.weight") for stage in attending),
    }
    size = published("mobilevit", shaped) or {"heads": (HEADS,) * len(attending), "strides": (2,) * len(attending)}
    early = [_residual(arrays, stage) for stage in range(first)]
    return {
        **shaped,
        "width": early[-1][0],
        **{name: given(config, name) or size[name] for name in ("heads", "strides")},
        "expansion": same_everywhere("expansion", [_residual(arrays, stage)[1] for stage in attending]),
        "head_width": shape(arrays, "final_conv.conv.weight", 4)[0],
        "stem_widths": (shape(arrays, "stem.conv.weight", 4)[0], *(width for width, _ in early)),
        "stem_blocks": blocks[first - 1],
        "stem_expansion": same_everywhere("expansion", [expansion for _, expansion in early]),
    }


def _attends(arrays: Arrays, stage: int) -> bool:
    return f"stages.{stage}.1.conv_1x1.weight" in arrays


def _residual(arrays: Arrays, stage: int) -> tuple[int, int]:
    """(channels, expansion) of a stage's first block."""
    hidden, inputs = shape(arrays, f"stages.{stage}.0.{EXPAND}.conv.weight", 4)[:2]
    channels = shape(arrays, f"stages.{stage}.0.{PROJECT}.conv.weight", 4)[0]
    return channels, whole_ratio("expansion", hidden, inputs)


def rules(options: Mapping[str, Any]) -> Iterable[Rule]:
    """The rules of a model with these options, see `layouts`."""
    yield from _convolution("embedding/convolution", "embedding/norm", "stem")
    early = len(options["stem_widths"]) - 1
    for stage in range(early):
        for index in range(options["stem_blocks"] if stage == early - 1 else 1):
            yield from _inverted_residual(f"embedding/stage_{stage}_block_{index}", f"stages.{stage}.{index}")
    for stage, depth in enumerate(options["depths"]):
        yield from _inverted_residual(f"residuals_{stage}", f"stages.{early + stage}.0")
        yield from _mobilevit_block(f"blocks_{stage}", f"stages.{early + stage}.1", depth)
    yield from _convolution("projection", "norm", "final_conv", POINTWISE)
    yield from linear("head", "head.fc", optional=True)


def _convolution(ours: str, normed: str, theirs: str, form: Form = CONVOLUTION) -> Iterable[Rule]:
    """A convolution without bias and its BatchNorm."""
    yield from linear(ours, f"{theirs}.conv", bias=False, form=form)
    yield from batch_norm(normed, f"{theirs}.bn")


def _inverted_residual(ours: str, theirs: str) -> Iterable[Rule]:
    for name, part, form in (
        ("expand", EXPAND, POINTWISE),
        ("depthwise", DEPTHWISE, CONVOLUTION),
        ("project", PROJECT, POINTWISE),
    ):
        yield from _convolution(f"{ours}/{name}", f"{ours}/{name}_norm", f"{theirs}.{part}", form)


def _mobilevit_block(ours: str, theirs: str, depth: int) -> Iterable[Rule]:
    yield from _convolution(f"{ours}/local", f"{ours}/local_norm", f"{theirs}.conv_kxk")
    yield from linear(f"{ours}/widen", f"{theirs}.conv_1x1", bias=False, form=POINTWISE)
    for index in range(depth):
        layer, block = f"{ours}/layers_{index}", f"{theirs}.transformer.{index}"
        yield from norm(f"{layer}/attention_norm", f"{block}.norm1")
        yield from linear(f"{layer}/qkv", f"{block}.attn.qkv")
        yield from linear(f"{layer}/out", f"{block}.attn.proj")
        yield from norm(f"{layer}/mlp_norm", f"{block}.norm2")
        yield from linear(f"{layer}/mlp_in", f"{block}.mlp.fc1")
        yield from linear(f"{layer}/mlp_out", f"{block}.mlp.fc2")
    yield from norm(f"{ours}/norm", f"{theirs}.norm")
    yield from _convolution(f"{ours}/narrow", f"{ours}/narrow_norm", f"{theirs}.conv_proj", POINTWISE)
    yield from _convolution(f"{ours}/fusion", f"{ours}/fusion_norm", f"{theirs}.conv_fusion")
