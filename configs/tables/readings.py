"""The readings that the paper leaves open, each beside what this project decided; the paper prints nothing for them.

stce reproduce readings --workdir=runs/tables
"""

from collections.abc import Iterator

from ml_collections import config_dict

from . import scales

VARIANTS = scales.VARIANTS


def get_config(scale: str = "paper") -> config_dict.ConfigDict:
    return scales.get_config(scale)


def sweep(scale: str = "paper") -> Iterator[scales.Row]:
    first = scales.stack_widths(scale)[:1]
    decided = ("stce",)
    yield scales.row("stce", "super-token convolution, as decided", {})
    mask, gradients = scales.super_tokens(border="mask"), scales.super_tokens(differentiable=True)
    yield scales.row("border_mask", "neighbours beyond the border masked", mask, decided)
    yield scales.row("differentiable", "gradients through the affinities", gradients, decided)
    if scale in scales.PAPERS_MODEL:  # elsewhere nothing is mixed
        mixing = {"augment.mixup": 0.8, "augment.cutmix": 1.0}
        yield scales.row("deit_mixing", "DeiT's mixup 0.8, CutMix 1.0", mixing, decided)
    yield scales.row("conv", "convolution, as decided", scales.embedding("conv", scale))
    conv1x1, early = (scales.embedding(name, scale) for name in ("conv1x1", "earlyconv"))
    yield scales.row("conv1x1", "convolution, last layer 1x1", conv1x1, ("conv",))
    yield scales.row("earlyconv", "EarlyConv's own stem", early, ("conv",))
    yield scales.row("stack_1", "module 1 alone, stride 1, as decided", scales.stack(first, (1,), scale))
    narrow = scales.stack(first, (2,), scale)
    yield scales.row("stack_1_stride_2", "module 1 alone, stride 2", narrow, ("stack_1",))
