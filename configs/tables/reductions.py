"""Token reductions under one recipe: every method at four keep rates, in the patch body and in the STCE body.

The paper compares its embedding with them and prints no figures for them.

stce reproduce reductions --scale=smoke --seeds=0 --workdir=runs/smoke          minutes
stce reproduce reductions --scale=small --data_dir=DIR --workdir=runs/small     class folders of 32-pixel images

At a keep rate r, stage s = 0, 1, 2 keeps floor(r^(s + 1) n) of n tokens. Every method that can keeps exactly these; the
others are marked in the report. Rows that decide come first: EViT, ToMe, DPC-KNN and ATS at r = 0.7 and 0.5.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import config_dict

from . import scales

VARIANTS = ("paper", "small", "smoke")
RATES = {"paper": (0.9, 0.7, 0.5, 0.25), "small": (0.9, 0.7, 0.5, 0.25), "smoke": (0.5,)}
BODIES = {"patch": "patches", "stce": "super tokens"}
# Method -> (its name in the report, options besides blocks and keep rate, whether it keeps exactly as many tokens).
METHODS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "evit": ("EViT", {"counting": "initial"}, False),  # and one fused token
    "tome": ("ToMe", {}, False),  # merges half of the tokens at most
    "dpcknn": ("DPC-KNN", {}, True),
    "ats": ("ATS [16] (called AdaViT in the text)", {}, False),  # at most as many
    "topk": ("Top-K", {}, True),
    "kmedoids": ("K-Medoids", {}, True),
    "dynamicvit": ("DynamicViT", {}, True),  # in evaluation; in training it masks
    "sit": ("SiT", {}, True),
    "patchmerger": ("PatchMerger", {}, True),
    "sinkhorn": ("Sinkhorn", {}, True),
    "pattern": ("fixed pattern", {}, False),  # whole rings of tokens
}
DECIDING = {(method, rate) for method in ("evit", "tome", "dpcknn", "ats") for rate in (0.7, 0.5)}


def get_config(scale: str = "paper") -> config_dict.ConfigDict:
    """The body of `scales` with three reducing blocks; 8x8 tokens of images of 32 pixels where it is scaled down."""
    config = scales.get_config(scale)
    body, parts = config.model.body.vit, config.model.embedding
    if scale == "paper":
        blocks = (3, 6, 9)
    else:
        blocks = (1, 2, 3)
        body.depth = 6 if scale == "small" else 4
        parts.patch.patch_size = 4
        parts.stce.stem_widths = (16, 32) if scale == "small" else (8, 16)
        parts.stce.stem_strides = (2, 1)
    # Five epochs: the 36 runs that decide take an hour on two cores, two seeds included.
    config.epochs = {"paper": config.epochs, "small": 5.0, "smoke": 1.0}[scale]
    warmup = config.optimizer.warmup_epochs
    config.optimizer.warmup_epochs = {"paper": warmup, "small": warmup, "smoke": 0.5}[scale]
    config.eval_every = {"paper": config.eval_every, "small": 5.0, "smoke": 1.0}[scale]
    for method in METHODS:
        config.model.reduction[method].blocks = blocks
    return config


def sweep(scale: str = "paper") -> Iterator[scales.Row]:
    yield from _rows(scale, deciding=True)
    yield from _rows(scale, deciding=False)


def _rows(scale: str, deciding: bool) -> Iterator[scales.Row]:
    for body, of_body in BODIES.items():
        whole = {} if body == "stce" else scales.embedding(body, scale)
        if deciding:
            first = ("patch_all",) if body == "stce" else ()
            yield scales.row(f"{body}_all", f"{of_body}, all tokens", whole, first) | {"decides": True}
        for method, (label, options, exact) in METHODS.items():
            for rate in RATES[scale]:
                if ((method, rate) in DECIDING) is not deciding:
                    continue
                run = f"{body}_{method}_{100 * rate:.0f}"
                chosen = {"name": method} | {f"{method}.{key}": value for key, value in options.items()}
                chosen |= {f"{method}.keep_rate": rate}
                overrides = whole | {f"model.reduction.{key}": value for key, value in chosen.items()}
                same = f"patch_{method}_{100 * rate:.0f}"
                against = (f"{body}_all", same) if body == "stce" else (f"{body}_all",)
                mark = "" if exact else " *"
                yield scales.row(run, f"{of_body}, {label}, {rate:g}{mark}", overrides, against) | {"decides": deciding}
