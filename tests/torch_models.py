"""Tiny models of every kind for the export as PyTorch; `made_runs.run_of` makes runs of them."""

import dataclasses

from stce_jax.models.bodies import BODIES
from stce_jax.models.embeddings import EMBEDDINGS
from stce_jax.models.factory import build_model, presets

SIZE, CLASSES = 32, 5
VIT = {"width": 16, "depth": 3, "heads": 2, "mlp_dim": 24}
STAGES = {"widths": (8, 16), "heads": (2, 2)}
OFFSETS = {"kernels": (3, 3), "strides": (2, 1), "groups": (1, 2), "offset_ranges": (2.0, 0.0)}
FOCAL = {**STAGES, "depths": (1, 1), "window": 2, "focal_windows": (3, 1), "expands": (1, 0)}
FOCAL["layer_scale"] = (0.0, 0.1)
BODY = {
    "vit": VIT,
    "deit": VIT,
    "swin": {**STAGES, "depths": (2, 1), "window": 3},
    "cvt": {**STAGES, "depths": (1, 2)},
    "cmt": {**STAGES, "depths": (1, 1), "key_strides": (2, 1), "mlp_ratios": (2.0, 2.5), "head_width": 24},
    "mobilevit": {"width": 8, "widths": (12, 16), "token_widths": (8, 8), "depths": (1, 2), "heads": (2, 2)}
    | {"strides": (2, 1), "expansion": 2, "head_width": 16},
    "focal": FOCAL,
    "focal_conv": FOCAL,
    "dat": {**STAGES, **OFFSETS, "kinds": ("LSD", "D"), "windows": (3, 3)},
    "datpp": {**STAGES, **OFFSETS, "kinds": ("ND", "DS"), "windows": (3, 3)}
    | {"neighbourhoods": (3, 5), "layer_scale": (0.0, 0.1)},
    "svit": {**STAGES, "depths": (1, 1), "cells": (2, 1), "layer_scale": (0.0, 0.1), "head_width": 24},
}
# Stems that leave 8x8 tokens of images of 32 pixels.
STEM = {"stem_widths": (6, 8), "stem_strides": (2, 1)}
EMBEDDING = {
    "patch": {"patch_size": 4},
    "linear_patch": {"patch_size": 4},
    "overlap_patch": {},
    "conv": {"stem_widths": (6, None), "stem_strides": (2, 2)},
    "conv1x1": {"stem_widths": (6, None), "stem_strides": (2, 2)},
    "svit": {"stem_widths": (6, None), "stem_strides": (2, 2)},
    "earlyconv": {"stem_widths": (6, 8), "stem_strides": (2, 2)},
    "stce": STEM,
    "hcformer": {**STEM, "assignment_width": 12},
    "max_pool": STEM,
    "cmt": STEM,
    "mobilevit": {"stem_widths": (6, 8, None), "stem_strides": (2, 1, 2), "stem_blocks": 2, "stem_expansion": 2},
    "datpp": {},
}


def tiny_model(body="vit", embedding="patch", *, image_size=SIZE, reduction=None, dtype=None, **options):
    """A tiny model of a body over an embedding; `options` go to the one that has them."""
    own = dict(BODY[body])
    width = own["width"] if "width" in own else own["widths"][0]
    of_embedding = {
        key: tuple(width if entry is None else entry for entry in value) if isinstance(value, tuple) else value
        for key, value in EMBEDDING[embedding].items()
    }
    fields = {field.name for field in dataclasses.fields(EMBEDDINGS[embedding])}
    for key, value in options.items():
        (of_embedding if key in fields and key != "width" else own)[key] = value
    size = next(iter(getattr(BODIES[body], "SIZES", {"": None})), None)
    own_embedding = getattr(BODIES[body], "EMBEDDING", None)
    name = f"{body}_{size}" if own_embedding and size else "vit_ti_patch"
    return build_model(
        name,
        num_classes=CLASSES,
        image_size=image_size,
        dtype=dtype,
        body={"name": body, **own},
        embedding={"name": embedding, **of_embedding},
        reduction=reduction,
    )


# (body, embedding) of every pair that a preset names.
PAIRS = sorted({(preset.body, preset.embedding) for preset in presets().values()})
# Reductions with the options that change what is computed, and the pooling that they are tried with.
REDUCED = {
    "topk": ("class", {"name": "topk", "blocks": (1,)}),
    "evit": ("class", {"name": "evit", "blocks": (0, 1)}),
    "evit without fusion": ("class", {"name": "evit", "blocks": (0, 1), "fuse": False, "counting": "initial"}),
    "tome": ("class", {"name": "tome", "r": 9}),
    "tome, mean": ("mean", {"name": "tome", "r": 9}),
    "tome, not proportional": ("class", {"name": "tome", "r": (9, 5), "proportional": False}),
    "tome by keep rate": ("class", {"name": "tome", "blocks": (0, 2), "keep_rate": 0.8}),
    "ats": ("class", {"name": "ats", "blocks": (0, 1)}),
    "kmedoids": ("class", {"name": "kmedoids", "blocks": (1, 2)}),
    "kmedoids, equal": ("mean", {"name": "kmedoids", "blocks": (1, 2), "equal_weight": True}),
    "dpcknn": ("class", {"name": "dpcknn", "blocks": (1, 2)}),
    "dpcknn, equal": ("mean", {"name": "dpcknn", "blocks": (1, 2), "equal_weight": True}),
    "dpcknn of all tokens": ("class", {"name": "dpcknn", "blocks": (1,), "keep_rate": 1.0}),
    "dynamicvit": ("class", {"name": "dynamicvit", "blocks": (1, 2)}),
    "sit": ("class", {"name": "sit", "blocks": (1, 2)}),
    "patchmerger": ("mean", {"name": "patchmerger", "blocks": (1, 2)}),
    "sinkhorn": ("class", {"name": "sinkhorn", "blocks": (1, 2)}),
    "pattern": ("class", {"name": "pattern", "blocks": (1, 2)}),
    "pattern, contiguous": ("mean", {"name": "pattern", "blocks": (1, 2), "distance": "l1", "contiguous": True}),
    "pattern, square": ("class", {"name": "pattern", "blocks": (1, 2), "distance": "linf"}),
}
# Options of bodies and embeddings that change what is computed.
VARIANTS = {
    "mean": ("vit", "patch", {"pooling": "mean"}),
    "sincos": ("vit", "patch", {"position_embedding": "sincos2d"}),
    "scan": ("vit", "linear_patch", {"scan_layers": True}),
    "distilled": ("deit", "linear_patch", {"distilled": True}),
    "ingredients": (
        "vit",
        "patch",
        {"position_embedding": "rope_mixed", "registers": 2, "layer_scale": 0.1, "qk_norm": True}
        | {"norm": "rmsnorm", "mlp": "swiglu"},
    ),
    "axial, normed, mean": (
        "vit",
        "stce",
        {"position_embedding": "rope_axial", "registers": 1, "qk_norm": True, "pooling": "mean", "scan_layers": True},
    ),
    "distilled with registers": ("deit", "linear_patch", {"distilled": True, "registers": 2, "layer_scale": 0.1}),
    "distilled and reduced": ("deit", "linear_patch", {"distilled": True, "reduction": {"name": "tome", "r": 9}}),
    "cells": ("vit", "stce", {"iterations": 0}),
    "cells of 2x3, masked": ("vit", "stce", {"border": "mask", "cell": (2, 3)}),
    "hcformer, odd": ("vit", "hcformer", {"image_size": 26}),
    "max_pool, odd": ("vit", "max_pool", {"image_size": 26}),
    "cvt of averages": ("cvt", "overlap_patch", {"class_token": False, "projection": "average", "scale": "head"}),
    "cvt of clusters": ("cvt", "stce", {"activation": "gelu", "downsample": "stce"}),
    "swin of clusters": ("swin", "stce", {"downsample": "stce"}),
    "swin, odd": ("swin", "linear_patch", {"image_size": 28}),
    "mobilevit, odd": ("mobilevit", "mobilevit", {"image_size": 34}),
    "focal without wrapping": ("focal", "linear_patch", {"wrap": False, "image_size": 28}),
    "dat, anywhere": ("dat", "linear_patch", {"offset_ranges": (0.0, 2.0), "image_size": 28}),
    "datpp, near": ("datpp", "datpp", {"offset_ranges": (2.0, 2.0)}),
}
