"""Does clustering help? Super tokens beside every plain thing that could stand in their place.

The paper compares with patches and a convolution stem; it leaves out the same stack with something plain instead of the
clustering. docs/study.md has the protocol, which was there before the runs.

stce reproduce clustering --scale=medium --data_dir=DIR --workdir=runs/clustering        CPUs, 64 pixels
stce reproduce clustering --scale=medium_128 --data_dir=DIR --workdir=runs/clustering    a GPU, ViT-S, 128 pixels
stce reproduce clustering --scale=smoke --seeds=0 --workdir=runs/smoke                   minutes

The five rows that decide come first, with all seeds; rows with four times the tokens, which cost most, come last. What
is compared with what is the protocol's, so rows have no "against".
"""

from collections.abc import Iterator

from ml_collections import config_dict

from . import scales

VARIANTS = scales.VARIANTS
_VIT_S: dict[str, tuple[int, ...]] = {"parameters": (8, 16, 28, 34, 384), "multiply_adds": (30, 60, 118, 118, 384)}
# Stems whose inner widths are narrowed, or widened, alike until they have what the super tokens have, within 1%.
EQUAL: dict[str, dict[str, tuple[int, ...]]] = {
    "paper": _VIT_S,
    "medium_128": _VIT_S,
    "medium": {"parameters": (8, 18, 30, 128), "multiply_adds": (24, 50, 100, 128)},
    "small": {"parameters": (8, 14, 32, 96), "multiply_adds": (24, 50, 102, 96)},
    "smoke": {"parameters": (2, 8, 16, 48), "multiply_adds": (14, 26, 48, 48)},
}
# The stack's strides for a quarter of the tokens, as many as elsewhere, four times as many: the same modules, so the
# same parameters.
_FEWER, _MORE = 1 / 4, 4
_STRIDES: dict[int, dict[float, tuple[int, ...]]] = {
    6: {_FEWER: (2, 2, 2, 1, 2, 1), 1: (2, 1, 2, 1, 2, 1), _MORE: (2, 1, 2, 1, 1, 1)},
    4: {_FEWER: (2, 2, 2, 1), 1: (2, 1, 2, 1), _MORE: (2, 1, 1, 1)},
}
_MIXED = {"augment.mixup": 1.0, "augment.cutmix": 0.8}  # the paper's
_UNMIXED = {"augment.mixup": 0.0, "augment.cutmix": 0.0}


def get_config(scale: str = "paper") -> config_dict.ConfigDict:
    return scales.get_config(scale)


def sweep(scale: str = "paper") -> Iterator[scales.Row]:
    row, super_tokens = scales.row, scales.super_tokens
    widths, pooling = scales.stack_widths(scale), super_tokens(iterations=0)
    yield row("patch", "patches", scales.embedding("patch", scale)) | {"decides": True}
    yield row("conv", "convolution stem", scales.embedding("conv", scale)) | {"decides": True}
    yield row("stce", "super tokens, T = 3", {}) | {"decides": True}
    yield row("pooling", "average pooling", pooling) | {"decides": True}
    strides = _STRIDES[len(widths)][1]
    strided = super_tokens(stem_widths=(*widths, widths[-1]), stem_strides=(*strides, 2), cell=(1, 1), iterations=0)
    yield row("strided", "strided convolution of the same width", strided) | {"decides": True}

    for what, words in (("parameters", "the super tokens' parameters"), ("multiply_adds", "their multiply-adds")):
        stem = {"model.embedding.conv.stem_widths": EQUAL[scale][what]}
        yield row(f"conv_{what}", f"convolution stem with {words}", scales.embedding("conv", scale) | stem)
    own = scales.get_config(scale).model.embedding.stce
    stack = {key: own[key] for key in ("stem_widths", "stem_strides", "cell") if own[key] is not None}
    maxima = {f"model.embedding.max_pool.{key}": value for key, value in stack.items()}
    yield row("max_pooling", "max pooling", scales.embedding("max_pool", scale) | maxima)
    for iterations in (1, 2):
        yield row(f"iterations_{iterations}", f"super tokens, T = {iterations}", super_tokens(iterations=iterations))
    gradients, mask = super_tokens(differentiable=True), super_tokens(border="mask")
    yield row("differentiable", "super tokens, gradients through the affinities", gradients)
    yield row("border_mask", "super tokens, neighbours beyond the border masked", mask)

    mixed = scales.get_config(scale).augment.mixup > 0
    mixing, words = (_UNMIXED, "no mixup or CutMix") if mixed else (_MIXED, "mixup and CutMix")
    yield from _pair("_other_mixing", f", {words}", mixing)
    for name, factor in (("fewer", _FEWER), ("more", _MORE)):
        options, tokens = super_tokens(stem_strides=_STRIDES[len(widths)][factor]), f", {_tokens(scale, factor)} tokens"
        yield from _pair(f"_{name}", tokens, options)
        yield from _pair(f"_{name}_other_mixing", f"{tokens}, {words}", options | mixing)


def _pair(ending: str, words: str, overrides: scales.Options) -> Iterator[scales.Row]:
    """Super tokens and average pooling under another condition."""
    pooling = overrides | scales.super_tokens(iterations=0)
    yield scales.row(f"stce{ending}", f"super tokens{words}", overrides)
    yield scales.row(f"pooling{ending}", f"average pooling{words}", pooling)


def _tokens(scale: str, factor: float) -> int:
    side = scales.get_config(scale).image_size // (16 if scale in scales.PAPERS_MODEL else 8)
    return round(side**2 * factor)
