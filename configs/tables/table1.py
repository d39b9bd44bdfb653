"""Table 1: learnable parameters of the embedding alone, at width 384. Nothing is trained for it.

stce reproduce table1 --workdir=runs/tables
"""

from collections.abc import Iterator

from ml_collections import config_dict

from . import scales

VARIANTS = scales.VARIANTS


def get_config(scale: str = "paper") -> config_dict.ConfigDict:
    return scales.get_config(scale)


def sweep(scale: str = "paper") -> Iterator[scales.Row]:
    patch, conv = (scales.embedding(name, scale) for name in ("patch", "conv"))
    yield scales.row("patch", "patch", patch, embedding_parameters="0.30M")
    yield scales.row("conv", "convolution", conv, embedding_parameters="1.00M")
    yield scales.row("stce", "super-token convolution", {}, embedding_parameters="0.09M")
