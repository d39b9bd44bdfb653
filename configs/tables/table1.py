"""Table 1: learnable parameters of the embedding alone, at width 384. Nothing is trained for it.

stce reproduce table1 --workdir=runs/tables
"""

from . import scales

VARIANTS = scales.VARIANTS


def get_config(scale="paper"):
    return scales.get_config(scale)


def sweep(scale="paper"):
    for name, label, parameters in (
        ("patch", "patch", "0.30M"),
        ("conv", "convolution", "1.00M"),
        ("stce", "super-token convolution", "0.09M"),
    ):
        overrides = {} if name == "stce" else scales.embedding(name, scale)
        yield {"run": name, "label": label, "overrides": overrides, "paper": {"embedding_parameters": parameters}}
