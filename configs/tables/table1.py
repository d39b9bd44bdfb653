"""Table 1: learnable parameters of the embedding alone, at width 384. Nothing is trained for it.

stce reproduce table1 --workdir=runs/tables
"""

from ml_collections import ConfigDict

from . import scales

VARIANTS = scales.VARIANTS


def get_config(scale: str = "paper") -> ConfigDict:
    return scales.get_config(scale)


def sweep(scale: str = "paper") -> list[scales.Row]:
    patch, conv = (scales.embedding(name, scale) for name in ("patch", "conv"))
    return [
        scales.row("patch", "patch", patch, embedding_parameters="0.30M"),
        scales.row("conv", "convolution", conv, embedding_parameters="1.00M"),
        scales.row("stce", "super-token convolution", {}, embedding_parameters="0.09M"),
    ]
