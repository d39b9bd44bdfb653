"""Table 6: the three embeddings before one body, ImageNet100 top-1 after 300 epochs, two of them after 500, too.

stce reproduce table6 --workdir=runs/tables                     the paper's: patch 78.44%, conv 81.14%, stce 83.52%
stce reproduce table6 --workdir=runs/smoke --scale=smoke        about three minutes on two cores
"""

from . import scales

VARIANTS = scales.VARIANTS


def get_config(scale="paper"):
    return scales.get_config(scale)


def sweep(scale="paper"):
    patch, conv = (scales.embedding(name, scale) for name in ("patch", "conv"))
    longer = scales.longer(scale)
    yield _row("patch", "patch, 300 epochs", patch, 78.44, "18M")
    yield _row("conv", "convolution, 300 epochs", conv, 81.14, "20M")
    yield _row("stce", "super-token convolution, 300 epochs", {}, 83.52, "17M")
    yield _row("patch_500", "patch, 500 epochs", patch | longer, 79.20, "18M")
    yield _row("conv_500", "convolution, 500 epochs", conv | longer, 82.72, "20M")


def _row(run, label, overrides, top1, parameters):
    return {"run": run, "label": label, "overrides": overrides, "paper": {"top1": top1, "parameters": parameters}}
