"""DAT (version 1, of the paper) as its authors' code saves it: DAT-T and the like.

Source: the state dict of the published code of that time (LeapLabTHU/DAT at 566a593, models/dat.py).
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
    window_side,
)
from stce_jax.convert.layouts.rules import CONVOLUTION, HALVING, PATCHES, POINTWISE, Form, Rule, linear, norm, parameter
from stce_jax.convert.layouts.said import Config, unshaped
from stce_jax.errors import CheckpointError, shown

TITLE = "DAT's published code"
PRESET = "dat_t"
IGNORED: tuple[str, ...] = BUFFERS
REFUSED = {r"^stages\.\d+\.proj\.": "a convolution before a stage"}
TABLE = "relative_position_bias_table"
# Of stages without such attention, which they do not change.
UNUSED = {"windows": 7, "groups": 1, "kernels": 3, "neighbourhoods": 7}


def recognise(names: Set[str]) -> bool:
    """Whether a file with these names is of this layout."""
    return {
        "patch_proj.0.weight",
        "stages.0.layer_norms.0.norm.weight",
        "stages.0.mlps.0.chunk.linear1.weight",
    } <= names


def options(arrays: Arrays, config: Config) -> dict[str, Any]:
    """The model's options, see `layouts`; no shape tells strides and reach of deformable attention, and buffers alone
    which windows are shifted."""
    found = read_stages("dat", arrays, config, "mlps.0.chunk.linear1.weight", 2)
    del found["neighbourhoods"]
    return {**found, "patch_size": shape(arrays, "patch_proj.0.weight", 4)[2]}


def read_stages(body: str, arrays: Arrays, config: Config, first_mlp: str, axes: int) -> dict[str, Any]:
    """The options of the stages of DAT or DAT++.

    Args:
      body: "dat" or "datpp".
      arrays, config: see `layouts`.
      first_mlp: name of the first layer of a stage's first MLP.
      axes: of its weight.
    """
    stages: list[dict[str, Any]] = []
    while norms := count(arrays, f"stages.{len(stages)}.layer_norms.{{}}.norm.weight"):
        stage = f"stages.{len(stages)}"
        hidden, width = shape(arrays, f"{stage}.{first_mlp}", axes)[:2]
        own: dict[str, Any] = {**UNUSED, "widths": width, "mlp_ratio": whole_ratio("mlp_ratio", hidden, width)}
        blocks = [_attention(arrays, f"{stage}.attns.{index}", width) for index in range(max(norms // 2, 1))]
        own["kinds"] = "".join(letter for letter, _ in blocks)
        for _, read in blocks:
            own |= read
        stages.append(own)
    if not stages:
        raise CheckpointError("it has no stages.0.layer_norms.0.norm.weight")
    found: dict[str, Any] = {name: tuple(stage[name] for stage in stages) for name in stages[0]}
    found["mlp_ratio"] = same_everywhere("mlp_ratio", found["mlp_ratio"])
    sizes = {"widths": found["widths"], "heads": found["heads"]}
    found["kinds"] = kinds = _kinds(body, arrays, config, sizes, found["kinds"])
    return found | unshaped(body, config, {**sizes, "kinds": kinds}, "strides", "offset_ranges")


def _attention(arrays: Arrays, name: str, width: int) -> tuple[str, dict[str, int]]:
    """(the letter of a block's attention, options that its shapes tell)."""
    if (offsets := f"{name}.conv_offset.0.weight") in arrays:
        channels, _, kernel, _ = shape(arrays, offsets, 4)
        groups = whole_ratio("groups", width, channels)
        return "D", {"heads": shape(arrays, f"{name}.rpe_table", 3)[0], "groups": groups, "kernels": kernel}
    if (table := f"{name}.rpb") in arrays:
        heads, side, _ = shape(arrays, table, 3)
        return "N", {"heads": heads, "neighbourhoods": (side + 1) // 2}
    places, heads = shape(arrays, f"{name}.{TABLE}", 2)
    letter = "S" if f"{name}.attn_mask" in arrays else "L"
    return letter, {"heads": heads, "windows": window_side(arrays, f"{name}.{TABLE}", places)}


def _kinds(
    body: str, arrays: Arrays, config: Config, sizes: Mapping[str, Any], found: tuple[str, ...]
) -> tuple[str, ...]:
    """The letters of all blocks; a file without buffers does not say which windows are shifted."""
    if "L" not in "".join(found) or any(name.endswith((".relative_position_index", ".attn_mask")) for name in arrays):
        return found
    said = unshaped(body, config, sizes, "kinds")["kinds"]
    as_found = [str(kinds).replace("S", "L") for kinds in said] if isinstance(said, list | tuple) else []
    if as_found != list(found):
        raise CheckpointError(f"its blocks are {shown(found)}, where L may be S; the option kinds is {shown(said)}")
    return tuple(said)


def rules(options: Mapping[str, Any]) -> Iterable[Rule]:
    """The rules of a model with these options, see `layouts`."""
    yield from linear("embedding/projection", "patch_proj.0", form=PATCHES)
    yield from norm("embedding_norm", "patch_proj.1.norm")
    yield from rules_of_stages(options, HALVING)
    for ours, (stage, index) in blocks_of(options):
        for number, name in enumerate(("mlp_in", "mlp_out"), start=1):
            yield from linear(f"{ours}/{name}", f"stages.{stage}.mlps.{index}.chunk.linear{number}")


def blocks_of(options: Mapping[str, Any]) -> Iterable[tuple[str, tuple[int, int]]]:
    """(name of a block here, (its stage, its number there)) of all blocks."""
    places = ((stage, index) for stage, kinds in enumerate(options["kinds"]) for index in range(len(kinds)))
    return ((f"blocks_{number}", place) for number, place in enumerate(places))


def rules_of_stages(options: Mapping[str, Any], halving: Form) -> Iterable[Rule]:
    """The rules of all that DAT and DAT++ call alike; `halving` is the form of convolutions between stages."""
    for ours, (stage, index) in blocks_of(options):
        theirs = f"stages.{stage}"
        yield from norm(f"{ours}/attention_norm", f"{theirs}.layer_norms.{2 * index}.norm")
        yield from norm(f"{ours}/mlp_norm", f"{theirs}.layer_norms.{2 * index + 1}.norm")
        yield from _attention_rules(f"{ours}/attention", f"{theirs}.attns.{index}", options["kinds"][stage][index])
    for stage in range(1, len(options["kinds"])):
        ours, down = f"halving_{stage - 1}", f"down_projs.{stage - 1}"
        yield from linear(f"{ours}/projection", f"{down}.0", bias=False, form=halving)
        yield from norm(f"{ours}/norm", f"{down}.1.norm")
    yield from norm("norm", "cls_norm.norm")
    yield from linear("head", "cls_head", optional=True)


def _attention_rules(ours: str, theirs: str, kind: str) -> Iterable[Rule]:
    if kind == "D":
        for name, end in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out")):
            yield from linear(f"{ours}/{name}", f"{theirs}.proj_{end}", form=POINTWISE)
        yield from linear(f"{ours}/offset_depthwise", f"{theirs}.conv_offset.0", form=CONVOLUTION)
        yield from norm(f"{ours}/offset_norm", f"{theirs}.conv_offset.1.norm")
        yield from linear(f"{ours}/offset", f"{theirs}.conv_offset.3", bias=False, form=POINTWISE)
        yield parameter(f"{ours}/bias_table", f"{theirs}.rpe_table")
        return
    qkv, out, table = ("qkv", "proj", "rpb") if kind == "N" else ("proj_qkv", "proj_out", TABLE)
    yield from linear(f"{ours}/qkv", f"{theirs}.{qkv}")
    yield from linear(f"{ours}/out", f"{theirs}.{out}")
    yield parameter(f"{ours}/bias_table", f"{theirs}.{table}")
