"""Table 1: learnable parameters of the embedding alone, at width 384. Nothing is trained for it.

stce reproduce table1 --workdir=runs/tables
"""

from . import scales

VARIANTS = scales.VARIANTS


def get_config(scale="paper"):
    return scales.get_config(scale)


def sweep(scale="paper"):
    patch, conv = (scales.embedding(name, scale) for name in ("patch", "conv"))
    yield scales.row("patch", "patch", patch, embedding_parameters="0.30M")
    yield scales.row("conv", "convolution", conv, embedding_parameters="1.00M")
    yield scales.row("stce", "super-token convolution", {}, embedding_parameters="0.09M")
