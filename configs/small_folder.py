"""Any class folders at a size that a CPU trains: 32-pixel images, on two cores about a minute an epoch of 10,000.

stce train --config=small_folder --data_dir=DIR --workdir=runs/small     DIR holds train/<class>/ and val/<class>/
stce train --config=small_folder:patch ...                               another embedding: stce, conv or patch
"""

from ml_collections import config_dict

from . import default

VARIANTS = ("stce", "conv", "patch")


def get_config(embedding: str = "stce") -> config_dict.ConfigDict:
    config = default.get_config()
    config.dataset = "folder"
    config.image_size = 32
    config.batch_size = 100
    config.eval_batch_size = 500
    config.epochs = 20.0

    config.model.name = f"vit_ti_{embedding}"
    body = config.model.body.vit
    body.width = 128
    body.depth = 4
    body.heads = 4
    body.mlp_dim = 384
    body.drop_path = 0.0
    # Each embedding gives 8x8 tokens.
    stce = config.model.embedding.stce
    stce.stem_widths = (32, 64)
    stce.stem_strides = (2, 1)
    stce.cell = (2, 2)
    for name in ("conv", "conv1x1", "earlyconv"):
        config.model.embedding[name].stem_widths = (32, 64, 128)
        config.model.embedding[name].stem_strides = (2, 2, 1)
    config.model.embedding.patch.patch_size = 4

    config.optimizer.warmup_epochs = 1.0
    config.optimizer.ema_decay = 0.0

    config.augment.crop_area = (0.4, 1.0)
    config.augment.resize = "pillow"  # published numbers are of this recipe, to the bit
    config.augment.eval_crop_fraction = 1.0
    config.augment.repeats = 1
    config.augment.rand_augment = ""
    config.augment.erase = 0.0
    config.augment.mixup = 0.0
    config.augment.cutmix = 0.0
    return config.lock()
