"""Hugging Face's ViT and DeiT: the names of files on the hub, those of transformers 5 in memory, and without a head.

Source: the names and shapes of `ViTForImageClassification` and `DeiTForImageClassificationWithTeacher`, saved.
"""

import re
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np

from stce_jax.convert.layouts import said
from stce_jax.convert.layouts.reading import renamed, replaced, shape
from stce_jax.convert.layouts.rules import PATCHES, Rule, linear, norm, parameter
from stce_jax.errors import CheckpointError

TITLE = "Hugging Face's ViT or DeiT"
PRESET = "deit_s"
IGNORED: tuple[str, ...] = ()
GUESSED = ("heads",)
REFUSED = {
    r"lambda_[12]$|layer_scale": "layer scale",
    r"relative_position": "relative positions",
    r"register_tokens": "register tokens",
}
KERNEL = "embeddings.patch_embeddings.projection.weight"
# What transformers 5 calls in memory what files call otherwise.
RENAMED = {
    r"^layers\.": "encoder.layer.",
    r"\.attention\.q_proj\.": ".attention.attention.query.",
    r"\.attention\.k_proj\.": ".attention.attention.key.",
    r"\.attention\.v_proj\.": ".attention.attention.value.",
    r"\.attention\.o_proj\.": ".attention.output.dense.",
    r"\.mlp\.fc1\.": ".intermediate.dense.",
    r"\.mlp\.fc2\.": ".output.dense.",
}
HEADS = r"(classifier|cls_classifier|distillation_classifier)\..*"


def _bare(name: str) -> str:
    """A name as in files, without the prefix of the body."""
    return replaced(re.sub(r"^(vit|deit)\.", "", name), RENAMED)


def recognise(names: Set[str]) -> bool:
    """Whether a file with these names is of this layout."""
    needed = {KERNEL, "embeddings.cls_token", "embeddings.position_embeddings"}
    return {*needed, "encoder.layer.0.layernorm_before.weight"} <= {_bare(name) for name in names}


def normal(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays under the names of files: with "vit." in front, or "deit." if there is a distillation token."""
    bare = renamed(arrays, _bare)
    prefix = "deit." if "embeddings.distillation_token" in bare else "vit."
    return {name if re.fullmatch(HEADS, name) else f"{prefix}{name}": array for name, array in bare.items()}


def options(arrays: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """The model's options, see `layouts`; for the number of heads where the config does not say it see `said`."""
    said.require(config, "model_type", ("vit", "deit"), "that is neither a ViT nor a DeiT")
    said.require(config, "hidden_act", ("gelu",), "its activation is not the model's, the exact GELU")
    said.require(config, "qkv_bias", (True,), "the model's attention has biases")
    distilled = "deit.embeddings.distillation_token" in arrays
    prefix = "deit." if distilled else "vit."
    width, _, patch, _ = shape(arrays, f"{prefix}{KERNEL}", 4)
    if distilled and "classifier.weight" in arrays:
        raise CheckpointError(
            "its head reads the class token alone, beside a distillation token; the model here has a head for each: "
            "take weights of DeiTForImageClassificationWithTeacher"
        )
    found = {
        "patch_size": patch,
        "width": width,
        "depth": sum(name.endswith(".layernorm_before.weight") for name in arrays),
        "heads": said.whole(config, "num_attention_heads", said.heads_of(config, width)),
        "mlp_dim": shape(arrays, f"{prefix}encoder.layer.0.intermediate.dense.weight", 2)[0],
        "distilled": distilled,
        "pooling": "class",
    }
    if "model_type" in config:  # transformers' own default, if it says none
        found["norm_epsilon"] = said.number(config, "layer_norm_eps", 1e-12)
    return found


def rules(options: Mapping[str, Any]) -> Iterable[Rule]:
    """The rules of a model with these options, see `layouts`."""
    body = "deit" if options["distilled"] else "vit"
    yield from linear("embedding/projection", f"{body}.embeddings.patch_embeddings.projection", form=PATCHES)
    yield parameter("class_token", f"{body}.embeddings.cls_token")
    yield parameter("position_embedding", f"{body}.embeddings.position_embeddings")
    for index in range(options["depth"]):
        ours, theirs = f"blocks_{index}", f"{body}.encoder.layer.{index}"
        parts = (f"{theirs}.attention.attention.{part}" for part in ("query", "key", "value"))
        yield from norm(f"{ours}/attention_norm", f"{theirs}.layernorm_before")
        yield from linear(f"{ours}/attention/qkv", *parts)
        yield from linear(f"{ours}/attention/out", f"{theirs}.attention.output.dense")
        yield from norm(f"{ours}/mlp_norm", f"{theirs}.layernorm_after")
        yield from linear(f"{ours}/mlp/in", f"{theirs}.intermediate.dense")
        yield from linear(f"{ours}/mlp/out", f"{theirs}.output.dense")
    yield from norm("norm", f"{body}.layernorm")
    yield from linear("head", "cls_classifier" if options["distilled"] else "classifier", optional=True)
    if options["distilled"]:
        yield parameter("distillation_token", "deit.embeddings.distillation_token")
        yield from linear("distillation_head", "distillation_classifier", optional=True)
