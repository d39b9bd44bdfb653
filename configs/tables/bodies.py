"""The paper's future work: each body with its own embedding, super tokens, and average pooling in their place.

The paper ends with "we will verify the embedding in various networks that modify ViT" and prints no figures for them.

stce reproduce bodies --scale=smoke --seeds=0 --workdir=runs/smoke          minutes
stce reproduce bodies --scale=small --data_dir=DIR --workdir=runs/small     class folders of 32-pixel images

All bodies are trained by one recipe, none by its own. Rows that decide come first: Swin, CvT and CMT, and MobileViT as
one of the others.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import config_dict

from . import scales

VARIANTS = ("paper", "small", "smoke")
DECIDING = ("swin", "cvt", "cmt", "mobilevit")
# Body -> (its name in the report, the model of its authors, its own embedding).
BODIES = {
    "swin": ("Swin", "swin_t", "linear_patch"),
    "cvt": ("CvT", "cvt_13", "overlap_patch"),
    "cmt": ("CMT", "cmt_s", "cmt"),
    "mobilevit": ("MobileViT", "mobilevit_s", "mobilevit"),
    "focal": ("Focal", "focal_t", "linear_patch"),
    "dat": ("DAT", "dat_t", "linear_patch"),
    "datpp": ("DAT++", "datpp_t", "datpp"),
    "svit": ("SViT", "svit_s", "svit"),
    "deit": ("DeiT", "deit_s", "linear_patch"),
}
# Embeddings at 32 pixels whose tokens lie 2 pixels apart, 16x16 of them.
_HALVES: dict[str, dict[str, Any]] = {
    "linear_patch": {"patch_size": 2},
    "overlap_patch": {"patch_size": 3, "patch_stride": 2, "patch_padding": 1},
    "cmt": {"stem_strides": (1, 1, 1)},
    "mobilevit": {"stem_strides": (1, 1, 2)},
    "svit": {"stem_strides": (2, 1, 1, 1)},
    "stce": {"stem_widths": (16, 32), "stem_strides": (1, 1), "cell": (2, 2)},
}
# The same 4 pixels apart, 8x8 of them: before DeiT and DAT++, whose own stem is fixed.
_QUARTERS: dict[str, dict[str, Any]] = {
    "linear_patch": {"patch_size": 4},
    "stce": {"stem_widths": (16, 32), "stem_strides": (2, 1), "cell": (2, 2)},
}
# Options of each body for images of 32 pixels: about a million parameters ("small"), or as few as work ("smoke").
_SMALL: dict[str, dict[str, Any]] = {
    "swin": {"widths": (48, 96, 192), "depths": (2, 4, 2), "heads": (3, 6, 12), "window": 4},
    "cvt": {"widths": (32, 64, 128), "depths": (1, 2, 4), "heads": (1, 2, 4)},
    "cmt": {"widths": (24, 48, 96, 192), "depths": (1, 1, 3, 1), "key_strides": (4, 2, 1, 1), "head_width": 320},
    "mobilevit": {"width": 32, "widths": (48, 64, 80), "token_widths": (64, 80, 96), "strides": (1, 2, 2)},
    "focal": {"widths": (48, 96, 192), "depths": (2, 2, 2), "heads": (3, 6, 12), "window": 4},
    "dat": {"widths": (48, 96, 192), "heads": (2, 4, 8), "kinds": ("LS", "LD", "LD"), "windows": (4, 4, 4)},
    "datpp": {"widths": (48, 96), "heads": (2, 4), "kinds": ("ND", "NDND"), "windows": (4, 4), "groups": (1, 2)},
    "svit": {"widths": (48, 96, 192), "depths": (1, 2, 2), "heads": (2, 4, 8), "cells": (4, 2, 1), "head_width": 320},
    "deit": {"width": 96, "depth": 6, "heads": 3, "mlp_dim": 384},
}
_SMALL["mobilevit"] |= {"depths": (1, 2, 1), "head_width": 320}
_SMALL["focal"] |= {"focal_windows": (3, 3, 1), "expands": (2, 2, 2), "layer_scale": (0.0, 0.0, 0.0)}
_SMALL["dat"] |= {"groups": (1, 2, 4), "kernels": (7, 5, 3), "strides": (1, 1, 1), "offset_ranges": (2.0, 2.0, 2.0)}
_SMALL["datpp"] |= {"kernels": (5, 3), "strides": (2, 1), "offset_ranges": (0.0, 0.0), "neighbourhoods": (3, 3)}
_SMALL["datpp"] |= {"layer_scale": (0.0, 0.0)}
_SMALL["svit"] |= {"layer_scale": (0.0, 0.0, 0.0)}
_SMOKE: dict[str, dict[str, Any]] = {
    "swin": {"widths": (12, 24), "depths": (1, 1), "heads": (2, 2), "window": 4},
    "cvt": {"widths": (8, 12, 16), "depths": (1, 1, 1), "heads": (1, 2, 2)},
    "cmt": {"widths": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "key_strides": (4, 2, 1, 1), "head_width": 32},
    "mobilevit": {"width": 8, "widths": (8, 12, 16), "token_widths": (16, 16, 16), "depths": (1, 1, 1)},
    "focal": {"widths": (12, 24), "depths": (1, 1), "heads": (2, 2), "window": 4, "focal_windows": (3, 1)},
    "dat": {"widths": (12, 24), "heads": (2, 2), "kinds": ("L", "D"), "windows": (4, 4), "groups": (1, 2)},
    "datpp": {"widths": (12, 24), "heads": (2, 2), "kinds": ("N", "D"), "windows": (4, 4), "groups": (1, 2)},
    "svit": {"widths": (12, 24), "depths": (1, 1), "heads": (2, 2), "cells": (4, 2), "head_width": 32},
    "deit": {"width": 48, "depth": 2, "heads": 3, "mlp_dim": 96},
}
_SMOKE["mobilevit"] |= {"strides": (1, 2, 2), "expansion": 2, "head_width": 32}
_SMOKE["focal"] |= {"expands": (2, 2), "layer_scale": (0.0, 0.0)}
_SMOKE["dat"] |= {"kernels": (5, 3), "strides": (1, 1), "offset_ranges": (2.0, 2.0)}
_SMOKE["datpp"] |= {"kernels": (5, 3), "strides": (2, 1), "offset_ranges": (0.0, 0.0), "neighbourhoods": (3, 3)}
_SMOKE["datpp"] |= {"layer_scale": (0.0, 0.0)}
_SMOKE["svit"] |= {"layer_scale": (0.0, 0.0)}


def get_config(scale: str = "paper") -> config_dict.ConfigDict:
    """What all bodies share; `scales` has the recipe."""
    config = scales.get_config(scale)
    # Without stochastic depth where runs are short; else each size's own.
    if scale != "paper":
        config.epochs = {"small": 5.0, "smoke": 1.0}[scale]
        config.eval_every = config.epochs
        config.optimizer.warmup_epochs = {"small": 1.0, "smoke": 0.5}[scale]
        for body in BODIES:
            config.model.body[body].drop_path = 0.0
    return config


def sweep(scale: str = "paper") -> Iterator[scales.Row]:
    for decides in (True, False):
        for body in BODIES:
            if (body in DECIDING) is decides:
                yield from _rows(scale, body, decides)


def _rows(scale: str, body: str, decides: bool) -> Iterator[scales.Row]:
    label, preset, own = BODIES[body]
    shared = {} if scale == "paper" else {"small": _SMALL, "smoke": _SMOKE}[scale][body]
    options = {f"model.body.{body}.{key}": value for key, value in shared.items()}

    def row(kind: str, words: str, name: str, embedding: str, against: tuple[str, ...] = (), **more: Any) -> scales.Row:
        table = {} if scale == "paper" else _QUARTERS if body in ("deit", "datpp") else _HALVES
        parts = table.get(embedding, {}) | more
        if scale == "smoke" and embedding == "stce":
            parts |= {"stem_widths": (8, 16)}
        parts = {f"model.embedding.{embedding}.{key}": value for key, value in parts.items()}
        overrides = {"model.name": name, **options, **parts}
        return scales.row(f"{body}_{kind}", f"{label}, {words}", overrides, against) | {"decides": decides}

    yield row("own", "its own embedding", preset, own)
    yield row("stce", "super tokens", f"{preset}_stce", "stce", (f"{body}_own",))
    yield row("pooling", "average pooling", f"{preset}_stce", "stce", (f"{body}_stce", f"{body}_own"), iterations=0)
