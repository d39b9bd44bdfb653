"""Table 8: iterations T of the clustering, and what the paper leaves out: average pooling alone in its place.

stce reproduce table8 --workdir=runs/tables       the paper's: 82.96%, 83.02%, 83.52%, 83.30% for T = 1, 2, 3, 4
"""

from collections.abc import Iterator

from ml_collections import config_dict

from . import scales

VARIANTS = scales.VARIANTS


def get_config(scale: str = "paper") -> config_dict.ConfigDict:
    return scales.get_config(scale)


def sweep(scale: str = "paper") -> Iterator[scales.Row]:
    del scale  # the same at every one
    row, decided = scales.row, ("stce",)
    one, two, four = (scales.super_tokens(iterations=iterations) for iterations in (1, 2, 4))
    yield row("pooling", "average pooling alone", scales.super_tokens(iterations=0), decided)
    yield row("iterations_1", "T = 1", one, decided, top1=82.96, images_per_second=766)
    yield row("iterations_2", "T = 2", two, decided, top1=83.02, images_per_second=749)
    yield row("stce", "T = 3", {}, top1=83.52, images_per_second=737)
    yield row("iterations_4", "T = 4", four, decided, top1=83.30, images_per_second=718)
