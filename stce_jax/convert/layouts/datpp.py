"""DAT++ as its authors' code saves it: DAT-T++ and the like, of blocks L, S, N and D.

Source: the state dict of the published code (LeapLabTHU/DAT at 32173fc, models/dat.py).
"""

from collections.abc import Iterable, Mapping, Set
from typing import Any

from stce_jax.convert.layouts import dat
from stce_jax.convert.layouts.dat import blocks_of, read_stages, rules_of_stages
from stce_jax.convert.layouts.reading import BUFFERS, Arrays
from stce_jax.convert.layouts.rules import CONVOLUTION, POINTWISE, Rule, linear, norm, parameter
from stce_jax.convert.layouts.said import Config

TITLE = "DAT++'s published code"
PRESET = "datpp_t"
IGNORED: tuple[str, ...] = BUFFERS
REFUSED = dat.REFUSED
LAYER_SCALE = 1e-5  # the published code's initial value, which nothing but an initialisation depends on


def recognise(names: Set[str]) -> bool:
    """Whether a file with these names is of this layout."""
    return {
        "patch_proj.3.weight",
        "stages.0.layer_norms.0.norm.weight",
        "stages.0.mlps.0.dwc.weight",
        "stages.0.local_perception_units.0.weight",
    } <= names


def options(arrays: Arrays, config: Config) -> dict[str, Any]:
    """The model's options, see `layouts`; for what shows in no shape see `dat.options`."""
    found = read_stages("datpp", arrays, config, "mlps.0.linear1.0.weight", 4)
    scaled = [f"stages.{stage}.layer_scales.0.weight" in arrays for stage in range(len(found["widths"]))]
    return {**found, "layer_scale": tuple(LAYER_SCALE * there for there in scaled)}


def rules(options: Mapping[str, Any]) -> Iterable[Rule]:
    """The rules of a model with these options, see `layouts`."""
    yield from linear("embedding/convolution_1", "patch_proj.0", form=CONVOLUTION)
    yield from norm("embedding/norm", "patch_proj.1.norm")
    yield from linear("embedding/convolution_2", "patch_proj.3", form=CONVOLUTION)
    yield from norm("embedding_norm", "patch_proj.4.norm")
    yield from rules_of_stages(options, CONVOLUTION)
    for ours, (stage, index) in blocks_of(options):
        theirs = f"stages.{stage}"
        yield from linear(f"{ours}/position", f"{theirs}.local_perception_units.{index}", form=CONVOLUTION)
        yield from linear(f"{ours}/mlp_in", f"{theirs}.mlps.{index}.linear1.0", form=POINTWISE)
        yield from linear(f"{ours}/mlp_depthwise", f"{theirs}.mlps.{index}.dwc", form=CONVOLUTION)
        yield from linear(f"{ours}/mlp_out", f"{theirs}.mlps.{index}.linear2.0", form=POINTWISE)
        if options["layer_scale"][stage]:
            for branch, name in enumerate(("attention_scale", "mlp_scale")):
                yield parameter(f"{ours}/{name}/scale", f"{theirs}.layer_scales.{2 * index + branch}.weight")
