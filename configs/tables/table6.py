"""Table 6: the three embeddings before one body, ImageNet100 top-1 after 300 epochs, two of them after 500, too.

stce reproduce table6 --workdir=runs/tables                     the paper's: patch 78.44%, conv 81.14%, stce 83.52%
stce reproduce table6 --workdir=runs/smoke --scale=smoke        about three minutes on two cores
"""

from collections.abc import Iterator

from ml_collections import config_dict

from . import scales

VARIANTS = scales.VARIANTS


def get_config(scale: str = "paper") -> config_dict.ConfigDict:
    return scales.get_config(scale)


def sweep(scale: str = "paper") -> Iterator[scales.Row]:
    patch, conv = (scales.embedding(name, scale) for name in ("patch", "conv"))
    row, longer = scales.row, scales.longer(scale)
    short, long = (f"{epochs:g} epochs" for epochs in (get_config(scale).epochs, longer["epochs"]))
    if scale != "paper":
        short, long = f"{short} for 300", f"{long} for 500"
    yield row("patch", f"patch, {short}", patch, top1=78.44, parameters="18M")
    yield row("conv", f"convolution, {short}", conv, ("patch",), top1=81.14, parameters="20M")
    yield row("stce", f"super-token convolution, {short}", {}, ("conv", "patch"), top1=83.52, parameters="17M")
    yield row("patch_500", f"patch, {long}", patch | longer, ("patch",), top1=79.20, parameters="18M")
    yield row("conv_500", f"convolution, {long}", conv | longer, ("conv",), top1=82.72, parameters="20M")
