"""The embedded default: real images, nothing to download, about a minute on two CPU cores.

stce train --config=digits --workdir=runs/digits            top-1 about 99%
stce train --config=digits:patch --workdir=runs/patch       the same with another embedding: stce, conv or patch
"""

from ml_collections import config_dict

from . import default

VARIANTS = ("stce", "conv", "patch")


def get_config(embedding: str = "stce") -> config_dict.ConfigDict:
    config = default.get_config()
    config.dataset = "digits"
    config.image_size = 32
    config.batch_size = 64
    config.eval_batch_size = 360
    config.epochs = 25.0
    config.log_every = 100
    config.eval_every = 5.0

    config.model.name = f"vit_ti_{embedding}"
    body = config.model.body.vit
    body.width = 64
    body.depth = 3
    body.heads = 2
    body.mlp_dim = 192
    body.drop_path = 0.0
    # Each embedding gives 4x4 tokens.
    stce = config.model.embedding.stce
    stce.stem_widths = (16, 32, 32, 48)
    stce.stem_strides = (2, 1, 2, 1)
    stce.cell = (2, 2)
    for name in ("conv", "conv1x1", "earlyconv"):
        config.model.embedding[name].stem_widths = (24, 48, 64)
        config.model.embedding[name].stem_strides = (2, 2, 2)
    config.model.embedding.patch.patch_size = 8

    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_epochs = 3.0
    config.optimizer.ema_decay = 0.0

    config.augment.crop = "center"
    config.augment.resize = "pillow"  # the numbers of the README are of this recipe, to the bit
    config.augment.eval_crop_fraction = 1.0
    config.augment.flip = 0.0  # a mirrored digit is no digit
    config.augment.shift = 2
    config.augment.repeats = 1
    config.augment.rand_augment = ""
    config.augment.erase = 0.0
    config.augment.mixup = 0.0
    config.augment.cutmix = 0.0
    return config.lock()
