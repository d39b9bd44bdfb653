"""The readings that the paper leaves open, each beside what this project decided; the paper prints nothing for them.

stce reproduce readings --workdir=runs/tables
"""

from . import scales

VARIANTS = scales.VARIANTS


def get_config(scale="paper"):
    return scales.get_config(scale)


def sweep(scale="paper"):
    side = 16 if scale == "paper" else 8  # pixels of the image in a token's cell
    first = (get_config(scale).model.stem_widths or (16,))[:1]
    yield _row("stce", "super-token convolution, as decided", {})
    yield _row("border_mask", "neighbours beyond the border masked", {"model.border": "mask"})
    yield _row("differentiable", "gradients through the affinities", {"model.differentiable": True})
    if scale == "paper":  # elsewhere nothing is mixed
        yield _row("deit_mixing", "DeiT's mixup 0.8, CutMix 1.0", {"augment.mixup": 0.8, "augment.cutmix": 1.0})
    yield _row("conv", "convolution, as decided", scales.embedding("conv", scale))
    yield _row("conv1x1", "convolution, last layer 1x1", scales.embedding("conv1x1", scale))
    yield _row("earlyconv", "EarlyConv's own stem", scales.embedding("earlyconv", scale))
    yield _row("stack_1", "module 1 alone, stride 1, as decided", scales.stack(first, (1,), side))
    yield _row("stack_1_stride_2", "module 1 alone, stride 2", scales.stack(first, (2,), side // 2))


def _row(run, label, overrides):
    return {"run": run, "label": label, "overrides": overrides, "paper": {}}
