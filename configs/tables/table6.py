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
    row = scales.row
    yield row("patch", "patch, 300 epochs", patch, top1=78.44, parameters="18M")
    yield row("conv", "convolution, 300 epochs", conv, ("patch",), top1=81.14, parameters="20M")
    yield row("stce", "super-token convolution, 300 epochs", {}, ("conv", "patch"), top1=83.52, parameters="17M")
    yield row("patch_500", "patch, 500 epochs", patch | longer, ("patch",), top1=79.20, parameters="18M")
    yield row("conv_500", "convolution, 500 epochs", conv | longer, ("conv",), top1=82.72, parameters="20M")
