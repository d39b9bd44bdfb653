"""What all tables share: three sizes of the whole undertaking.

paper   the paper's recipe on ImageNet100 at 224 pixels: for GPUs or TPUs, about 40 million views a run
small   a ladder of the same shape for any class folders at 32 pixels: some minutes a run on two cores, 10,000 images
smoke   the digits and a tiny model: seconds a run; proves the machinery and says nothing about embeddings

The last two keep the paper's proportions: a stack of convolutions down to twice the token grid, then cells of 2x2; the
patch and the convolution embedding give the same grid; 500 epochs are 5/3 of what stands for 300.
"""

from .. import digits, small_folder, stce_vit_s

VARIANTS = ("paper", "small", "smoke")
FULL_STACK = {"paper": "modules 1-6", "small": "all modules, here 1-4", "smoke": "all modules, here 1-4"}


def get_config(scale="paper"):
    """The super-token convolution embedding as proposed, at the length that stands for the paper's 300 epochs."""
    if scale == "paper":
        return stce_vit_s.get_config()
    config = small_folder.get_config() if scale == "small" else digits.get_config()
    with config.unlocked():
        config.model.heads = 3
        config.model.stem_strides = (2, 1, 2, 1)  # 32 -> 8x8 pixels, then cells of 2x2: 4x4 tokens
        config.model.cell = (2, 2)
        config.optimizer.warmup_epochs = 1.0
        if scale == "small":
            config.epochs = 15.0
            config.model.width = 96
            config.model.mlp_dim = 288
            config.model.stem_widths = (16, 32, 32, 48)
        else:
            config.epochs = 6.0
            config.eval_every = 2.0
            config.model.width = 48
            config.model.depth = 2
            config.model.mlp_dim = 96
            config.model.stem_widths = (8, 16, 16, 24)
    return config


def row(run, label, overrides, against=(), **paper):
    """A row as `sweep` yields it, see the package; `paper` is what the paper prints for it."""
    return {"run": run, "label": label, "overrides": overrides, "against": against, "paper": paper}


def embedding(name, scale):
    """Overrides that put another embedding ("patch", "conv", ...) in the place of the super tokens."""
    if scale == "paper":
        return {"model.name": f"vit_s_{name}"}
    own = {"model.stem_widths": None, "model.stem_strides": None, "model.cell": None}
    own |= {"model.name": f"vit_ti_{name}"}
    if name == "patch":
        return own | {"model.patch_size": 8}
    if name == "earlyconv":
        return own | {"model.stem_strides": (2, 2, 2), "model.stem_widths": _fractions(scale, 4, 2, 1)}
    return own | {"model.stem_strides": (2, 2, 2, 1), "model.stem_widths": _fractions(scale, 4, 2, 1, 1)}


def stack_widths(scale):
    """Channels of all modules of the convolution stack; the paper's (Table 5) are the model's own."""
    return get_config(scale).model.stem_widths or (16, 32, 32, 64, 64, 64)


def stack(widths, strides, scale):
    """Overrides of the convolution stack, with cells that give the same token grid whatever the strides."""
    cell = 16 if scale == "paper" else 8  # pixels of the image, side of a token's cell
    for stride in strides:
        cell //= stride
    return {"model.stem_widths": widths, "model.stem_strides": strides, "model.cell": (cell, cell)}


def longer(scale):
    """Overrides of the length that stands for the paper's 500 epochs."""
    return {"epochs": get_config(scale).epochs * 5 / 3}


def _fractions(scale, *divisors):
    return tuple(get_config(scale).model.width // divisor for divisor in divisors)
