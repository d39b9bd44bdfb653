"""Table 7: how deep the convolution stack goes before the clustering; every row ends with the same token grid.

stce reproduce table7 --workdir=runs/tables       the paper's: none 48.26%, modules 1-6 83.52%, one more 81.50%
"""

from collections.abc import Iterator

from ml_collections import config_dict

from . import scales

VARIANTS = scales.VARIANTS


def get_config(scale: str = "paper") -> config_dict.ConfigDict:
    return scales.get_config(scale)


def sweep(scale: str = "paper") -> Iterator[scales.Row]:
    full = scales.stack_widths(scale)
    strides = (2, 1) * (len(full) // 2)
    one, two = scales.stack(full[:1], (1,), scale), scales.stack(full[:2], (2, 1), scale)
    more = scales.stack((*full, full[-1]), (*strides, 2), scale)
    row, all_modules, whole = scales.row, scales.FULL_STACK[scale], ("stce",)
    yield row("stack_none", "none", scales.stack((), (), scale), whole, top1=48.26, parameters="17.7M")
    yield row("stack_1", "module 1, stride 1", one, whole, top1=80.20, parameters="17.8M")
    yield row("stack_2", "modules 1-2", two, whole, top1=80.68, parameters="17.8M")
    if scale in scales.PAPERS_MODEL:  # elsewhere the whole stack has four modules
        four = scales.stack(full[:4], (2, 1, 2, 1), scale)
        yield row("stack_4", "modules 1-4", four, whole, top1=82.18, parameters="17.8M")
    yield row("stce", all_modules, {}, top1=83.52, parameters="17.9M")
    yield row("stack_more", f"{all_modules} and one more convolution", more, whole, top1=81.50, parameters="17.9M")
