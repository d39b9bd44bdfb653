"""Table 7: how deep the convolution stack goes before the clustering; every row ends with the same token grid.

stce reproduce table7 --workdir=runs/tables       the paper's: none 48.26%, modules 1-6 83.52%, one more 81.50%
"""

from . import scales

VARIANTS = scales.VARIANTS


def get_config(scale="paper"):
    return scales.get_config(scale)


def sweep(scale="paper"):
    full = get_config(scale).model.stem_widths or (16, 32, 32, 64, 64, 64)
    strides = (2, 1) * (len(full) // 2)
    side = 16 if scale == "paper" else 8  # pixels of the image in a token's cell
    yield _row("stack_none", "none", scales.stack((), (), side), 48.26, "17.7M")
    yield _row("stack_1", "module 1, stride 1", scales.stack(full[:1], (1,), side), 80.20, "17.8M")
    yield _row("stack_2", "modules 1-2", scales.stack(full[:2], (2, 1), side // 2), 80.68, "17.8M")
    if scale == "paper":  # elsewhere the whole stack has four modules
        yield _row("stack_4", "modules 1-4", scales.stack(full[:4], (2, 1, 2, 1), side // 4), 82.18, "17.8M")
    yield _row("stce", scales.FULL_STACK[scale], {}, 83.52, "17.9M")
    more = scales.stack((*full, full[-1]), (*strides, 2), 1)
    yield _row("stack_more", f"{scales.FULL_STACK[scale]} and one more convolution", more, 81.50, "17.9M")


def _row(run, label, overrides, top1, parameters):
    return {"run": run, "label": label, "overrides": overrides, "paper": {"top1": top1, "parameters": parameters}}
