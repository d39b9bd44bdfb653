"""What all tables share: five sizes of the whole undertaking.

paper       the paper's recipe on ImageNet100 at 224 pixels: for GPUs or TPUs, about 40 million views a run
medium_128  the paper's ViT-S and recipe for any class folders at 128 pixels, 64 tokens, 100 epochs: for an accelerator
medium      any class folders at 64 pixels, 64 tokens: some 10 minutes a run on one core, 10,000 images
small       a ladder of the same shape for any class folders at 32 pixels: some minutes a run on two cores
smoke       the digits and a tiny model: seconds a run; proves the machinery and says nothing about embeddings

All keep the paper's proportions: a stack of convolutions down to twice the token grid, then cells of 2x2; the patch and
the convolution embedding give the same grid; 500 epochs are 5/3 of what stands for 300.
"""

from typing import Any

from ml_collections import config_dict

from .. import digits, small_folder, stce_vit_s

MEDIUM_EPOCHS = 8.0  # of 10,000 images: two cores train two runs in some 10 minutes
Options = dict[str, Any]  # key of the config -> value
Row = dict[str, Any]  # see the package
VARIANTS = ("paper", "medium_128", "medium", "small", "smoke")
PAPERS_MODEL = ("paper", "medium_128")  # scales with the paper's own ViT-S and stack
FULL_STACK = {scale: "modules 1-6" if scale in PAPERS_MODEL else "all modules, here 1-4" for scale in VARIANTS}


def get_config(scale: str = "paper") -> config_dict.ConfigDict:
    """The super-token convolution embedding as proposed, at the length that stands for the paper's 300 epochs."""
    if scale == "paper":
        return stce_vit_s.get_config()
    if scale == "medium_128":
        return _medium_128()
    config = digits.get_config() if scale == "smoke" else small_folder.get_config()
    body, parts = config.model.body.vit, config.model.embedding
    body.heads = 3
    config.optimizer.warmup_epochs = 1.0
    if scale == "medium":
        # The paper's own modules 1-4: 64 pixels are halved twice.
        config.image_size = 64
        config.epochs = MEDIUM_EPOCHS
        config.keep_checkpoints = 1
        body.heads = 4
        parts.stce.stem_widths = (16, 32, 32, 64)
    elif scale == "small":
        config.epochs = 15.0
        body.width = 96
        body.mlp_dim = 288
        parts.stce.stem_widths = (16, 32, 32, 48)
    else:
        config.epochs = 6.0
        config.eval_every = 2.0
        body.width = 48
        body.depth = 2
        body.mlp_dim = 96
        parts.stce.stem_widths = (8, 16, 16, 24)
    # Each embedding has a token for 8x8 pixels.
    parts.stce.stem_strides = (2, 1, 2, 1)
    parts.stce.cell = (2, 2)
    parts.patch.patch_size = 8
    for name, divisors in (("conv", (4, 2, 1, 1)), ("conv1x1", (4, 2, 1, 1)), ("earlyconv", (4, 2, 1))):
        parts[name].stem_widths = tuple(body.width // divisor for divisor in divisors)
        parts[name].stem_strides = (2, 2, 2, 1)[: len(divisors)]
    return config


def _medium_128() -> config_dict.ConfigDict:
    """The paper's recipe at 128 pixels, whose stack gives 16x16 and whose cells then give 8x8 tokens."""
    config = stce_vit_s.get_config()
    config.dataset = "folder"
    config.image_size = 128
    config.epochs = 100.0
    config.model.dtype = "bfloat16"
    config.optimizer.ema_decay = 0.0  # nothing here reads the average
    # An evaluation and a checkpoint of ViT-S take as long as an epoch of 10,000 images.
    config.eval_every = 10.0
    config.keep_checkpoints = 1
    config.augment.eval_crop_fraction = 1.0
    return config


def row(run: str, label: str, overrides: Options, against: tuple[str, ...] = (), **paper: float | str) -> Row:
    """A row as `sweep` yields it, see the package; `paper` is what the paper prints for it."""
    return {"run": run, "label": label, "overrides": overrides, "against": against, "paper": paper}


def embedding(name: str, scale: str) -> Options:
    """Overrides that put another embedding ("patch", "conv", ...) in the place of the super tokens."""
    return {"model.name": f"vit_s_{name}" if scale in PAPERS_MODEL else f"vit_ti_{name}"}


def super_tokens(**options: Any) -> Options:
    """Overrides of the super-token embedding's options."""
    return {f"model.embedding.stce.{key}": value for key, value in options.items()}


def stack_widths(scale: str) -> tuple[int, ...]:
    """Channels of all modules of the convolution stack; the paper's (Table 5) are the model's own."""
    return get_config(scale).model.embedding.stce.stem_widths or (16, 32, 32, 64, 64, 64)


def stack(widths: tuple[int, ...], strides: tuple[int, ...], scale: str) -> Options:
    """Overrides of the convolution stack, with cells that give the same token grid whatever the strides."""
    cell = 16 if scale in PAPERS_MODEL else 8  # pixels of the image, side of a token's cell
    for stride in strides:
        cell //= stride
    return super_tokens(stem_widths=widths, stem_strides=strides, cell=(cell, cell))


def longer(scale: str) -> Options:
    """Overrides of the length that stands for the paper's 500 epochs."""
    return {"epochs": get_config(scale).epochs * 5 / 3}
