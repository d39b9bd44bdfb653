"""What the layouts of Swin share: the same parts, called differently."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from stce_jax.convert.layouts.reading import (
    Arrays,
    count,
    same_everywhere,
    shape,
    whole_ratio,
    window_side,
)
from stce_jax.convert.layouts.rules import PATCHES, Rule, check_own, linear, norm, parameter

TABLE = "relative_position_bias_table"
REFUSED = {r"^absolute_pos_embed$|\.position_embeddings$": "learned positions of patches"}


class Names(NamedTuple):
    """How a library calls the parts of a Swin.

    Attributes:
      embedding, embedding_norm, norm, head: of the whole model.
      block: of a block's parts, with {stage} and {block}, both counted from 0.
      attention_norm, qkv, attention, out, mlp_norm, mlp_in, mlp_out: behind it; `qkv` is one layer or three,
        `attention` has the table of biases.
      merging: what merges patches behind a stage, with {stage}, or {next}, the number of the stage after it.
    """

    embedding: str
    embedding_norm: str
    norm: str
    head: str
    block: str
    attention_norm: str
    qkv: tuple[str, ...]
    attention: str
    out: str
    mlp_norm: str
    mlp_in: str
    mlp_out: str
    merging: str

    def of_block(self, stage: int, block: object) -> str:
        return self.block.format(stage=stage, block=block)

    def of_merging(self, stage: int) -> str:
        return self.merging.format(stage=stage, next=stage + 1)


def read_options(names: Names, arrays: Arrays) -> dict[str, Any]:
    """The options of a Swin; all of them show in shapes."""
    _, _, patch, _ = shape(arrays, f"{names.embedding}.weight", 4)
    depths: list[int] = []
    widths, heads, windows, ratios = [], [], [], []
    while depth := count(arrays, names.of_block(len(depths), "{}") + f"{names.attention_norm}.weight"):
        prefix = names.of_block(len(depths), 0)
        depths.append(depth)
        hidden, width = shape(arrays, f"{prefix}{names.mlp_in}.weight", 2)
        offsets, count_of_heads = shape(arrays, f"{prefix}{names.attention}.{TABLE}", 2)
        widths.append(width)
        heads.append(count_of_heads)
        windows.append(window_side(arrays, f"{prefix}{names.attention}.{TABLE}", offsets))
        ratios.append(whole_ratio("mlp_ratio", hidden, width))
    return {
        "patch_size": patch,
        "widths": tuple(widths),
        "depths": tuple(depths),
        "heads": tuple(heads),
        "window": same_everywhere("window", windows),
        "mlp_ratio": same_everywhere("mlp_ratio", ratios),
    }


def rules_of(names: Names, options: Mapping[str, Any]) -> Iterable[Rule]:
    """The rules of a Swin with these options."""
    check_own(options, "Swin", downsample="merging")
    yield from linear("embedding/projection", names.embedding, form=PATCHES)
    yield from norm("embedding_norm", names.embedding_norm)
    done = 0
    for stage, depth in enumerate(options["depths"]):
        if stage:
            yield from norm(f"downsampling_{stage - 1}/norm", f"{names.of_merging(stage - 1)}.norm")
            yield from linear(
                f"downsampling_{stage - 1}/projection", f"{names.of_merging(stage - 1)}.reduction", bias=False
            )
        for index in range(depth):
            ours, theirs = f"blocks_{done + index}", names.of_block(stage, index)
            yield from norm(f"{ours}/attention_norm", f"{theirs}{names.attention_norm}")
            yield parameter(f"{ours}/attention/bias_table", f"{theirs}{names.attention}.{TABLE}")
            yield from linear(f"{ours}/attention/qkv", *(theirs + name for name in names.qkv))
            yield from linear(f"{ours}/attention/out", f"{theirs}{names.out}")
            yield from norm(f"{ours}/mlp_norm", f"{theirs}{names.mlp_norm}")
            yield from linear(f"{ours}/mlp/in", f"{theirs}{names.mlp_in}")
            yield from linear(f"{ours}/mlp/out", f"{theirs}{names.mlp_out}")
        done += depth
    yield from norm("norm", names.norm)
    yield from linear("head", names.head, optional=True)
