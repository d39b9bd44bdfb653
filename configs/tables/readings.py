"""The readings that the paper leaves open, each beside what this project decided; the paper prints nothing for them.

stce reproduce readings --workdir=runs/tables
"""

from ml_collections import ConfigDict

from . import scales

VARIANTS = scales.VARIANTS


def get_config(scale: str = "paper") -> ConfigDict:
    return scales.get_config(scale)


def sweep(scale: str = "paper") -> list[scales.Row]:
    first = scales.stack_widths(scale)[:1]
    row, decided = scales.row, ("stce",)
    mask, gradients = scales.super_tokens(border="mask"), scales.super_tokens(differentiable=True)
    conv, conv1x1, early = (scales.embedding(name, scale) for name in ("conv", "conv1x1", "earlyconv"))
    rows = [
        row("stce", "super-token convolution, as decided", {}),
        row("border_mask", "neighbours beyond the border masked", mask, decided),
        row("differentiable", "gradients through the affinities", gradients, decided),
    ]
    if scale == "paper":  # elsewhere nothing is mixed
        mixing: scales.Overrides = {"augment.mixup": 0.8, "augment.cutmix": 1.0}
        rows += [row("deit_mixing", "DeiT's mixup 0.8, CutMix 1.0", mixing, decided)]
    return [
        *rows,
        row("conv", "convolution, as decided", conv),
        row("conv1x1", "convolution, last layer 1x1", conv1x1, ("conv",)),
        row("earlyconv", "EarlyConv's own stem", early, ("conv",)),
        row("stack_1", "module 1 alone, stride 1, as decided", scales.stack(first, (1,), scale)),
        row("stack_1_stride_2", "module 1 alone, stride 2", scales.stack(first, (2,), scale), ("stack_1",)),
    ]
